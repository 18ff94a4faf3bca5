"""Exact mean and variance of the input of every BatchNorm layer over a set of images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selftrain_seg import _checks
from selftrain_seg.batchnorm._layers import MEAN, VAR, join, require_layers
from selftrain_seg.distributed import all_reduce_max, all_reduce_sum
from selftrain_seg.teachers._evaluating import evaluating
from selftrain_seg.teachers._weights import unwrap

__all__ = ["estimate_statistics"]

_Values = dict[str, tuple[Tensor, Tensor]]  # mean and variance of each layer


@torch.no_grad()
def estimate_statistics(
    net: nn.Module,
    batches: Iterable[Any],
    *,
    passes: int = 1,
    forward: Callable[[Tensor], Any] | None = None,
) -> dict[str, Tensor]:
    """Estimate the statistics of BatchNorm layers on unlabelled images, such as those of the target.

    ``mean = Σ x / N`` and ``var = Σ (x - mean)² / (N - 1)`` over all N values of a channel in all images, accumulated
    in float64. ``torch.optim.swa_utils.update_bn`` differs: it averages the means and variances of the batches, so it
    loses the variance between batches, which is large for batches of one image. It also runs in training mode, with
    dropout, and does not reduce over ranks.

    In the first pass, layers normalise by the statistics of the batch, as in training, so the estimates of deeper
    layers depend on the batches. In each further pass, layers normalise by the estimates of the previous pass. After p
    passes the statistics of the first p layers are exact, that is, equal to those of their inputs in evaluation mode,
    however images are batched. A single pass is common practice.

    A layer with a single value per channel, such as after global pooling of one image, normalises by its own
    statistics; its estimate is not affected. A compiled network runs in eager mode.

    Args:
        net: a network with BatchNorm layers (1d, 2d, 3d or ``SyncBatchNorm``), wrapped or not. Its state is restored at
            the end, also after an error; apply the result with ``set_statistics``. All other layers, such as dropout,
            are in evaluation mode.
        batches: batches of images, or tuples that start with images; they are moved to the device of the network. An
            iterator is accepted for one pass.
        passes: at least 1. With as many passes as layers, the result does not depend on the batches.
        forward: maps images to the output of the network; None means ``net(images)``. Use it for networks that need
            more arguments, or to predict large images in parts.

    Returns:
        Statistics as returned by ``get_statistics``, in the dtype of the layers. A layer that sees fewer than two
        values per channel keeps its statistics.

    State / distributed:
        Each rank passes its share of the images. Sums are added over ranks, so every rank must call it; the result
        equals that of one process with all batches. If one rank fails, all ranks raise an error. ``SyncBatchNorm``
        normalises by the batch of its own rank. With FSDP, all ranks need the same number of batches.

    Raises:
        TypeError: ``net`` is not a ``torch.nn.Module``, or a batch has no tensor.
        ValueError: the network has no BatchNorm layer, ``batches`` is empty or cannot be repeated, or a statistic is
            not finite.

    References:
        Li et al., "Revisiting Batch Normalization for Practical Domain Adaptation" (AdaBN), 2016, arXiv:1603.04779.
        Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021, arXiv:2105.07576, section 3, on the population's
        statistics.

    Example:
        >>> import torch
        >>> norm = torch.nn.BatchNorm2d(1)
        >>> target = [torch.tensor([1.0, 1.0, 3.0]).reshape(1, 1, 1, 3), torch.tensor([7.0]).reshape(1, 1, 1, 1)]
        >>> estimate_statistics(norm, target)  # over 1, 1, 3, 7
        {'running_mean': tensor([3.]), 'running_var': tensor([8.])}
    """
    layers = require_layers(net)
    _checks.check_count(passes, "passes")
    if passes > 1 and iter(batches) is batches:
        raise ValueError("`batches`: expected a list or a loader for more than one pass, got an iterator")
    network = unwrap(net)
    found: _Values | None = None
    for _ in range(passes):
        found = _one_pass(network, layers, batches, network if forward is None else forward, found)
    named = {}
    for name, (mean, var) in (found or {}).items():
        named[join(name, MEAN)], named[join(name, VAR)] = mean, var
    return named


def _one_pass(
    network: nn.Module,
    layers: Mapping[str, _BatchNorm],
    batches: Iterable[Any],
    forward: Callable[[Tensor], Any],
    given: _Values | None,
) -> _Values:
    """Estimate statistics in one pass, in which layers normalise by ``given`` or by the batch."""
    device = next((tensor.device for tensor in (*network.parameters(), *network.buffers())), None)
    moments = {name: _Moments(layer) for name, layer in layers.items()}
    failure: Exception | None = None
    try:
        with evaluating(network), _uncompiled(), _observed(layers, moments, given):
            for batch in batches:
                images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
                _checks.check_tensor(images, "batches")
                forward(images.to(device, non_blocking=True))
    except Exception as error:
        failure = error
    if bool(all_reduce_max(torch.tensor(0.0 if failure is None else 1.0))):  # so that no rank waits for one that failed
        raise failure or RuntimeError("`batches`: another rank failed while statistics were estimated")
    return _combined(layers, moments)


class _Moments:
    """Count, mean and Σ (x - mean)² of each channel, batch by batch (Chan et al.)."""

    def __init__(self, layer: _BatchNorm) -> None:
        self.count = 0
        zeros = torch.zeros(2, layer.num_features, dtype=torch.float64, device=_running_buffers(layer)[0].device)
        self.mean, self.squares = zeros.unbind()

    def add(self, values: Tensor) -> None:
        count = _values_per_channel(values)
        if not count:
            return
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        variance, mean = torch.var_mean(values, [0, *range(2, values.ndim)], correction=0)
        total, apart = self.count + count, mean.double() - self.mean
        self.squares += variance.double() * count + apart.square() * (self.count * count / total)
        self.mean += apart * (count / total)
        self.count = total


def _values_per_channel(values: Tensor) -> int:
    return values.numel() // values.shape[1] if values.shape[1] else 0


@contextmanager
def _observed(
    layers: Mapping[str, _BatchNorm], moments: Mapping[str, _Moments], given: _Values | None
) -> Iterator[None]:
    """Record the inputs of all layers, which normalise by ``given``, or by the batch if that is None."""
    kept = {name: _running_buffers(layer) for name, layer in layers.items()}

    def hook(name: str) -> Callable[[nn.Module, Any], None]:
        def before(layer: nn.Module, args: Any) -> None:
            values = args[0].detach()
            moments[name].add(values)
            if given is None:
                alone = _values_per_channel(values) < 2
                _set_buffers(layer, *(kept[name] if alone else (None, None)))

        return before

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        for name, layer in layers.items():
            _set_buffers(layer, *(kept if given is None else given)[name])
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, layer in layers.items():
            _set_buffers(layer, *kept[name])


def _running_buffers(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.running_mean, layer.running_var


def _set_buffers(layer: nn.Module, mean: Tensor | None, var: Tensor | None) -> None:
    layer._buffers[MEAN], layer._buffers[VAR] = mean, var


def _uncompiled() -> AbstractContextManager[Any]:
    """Disable compiled code, which ignores hooks that were added later. Does not import the compiler."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _combined(layers: Mapping[str, _BatchNorm], moments: Mapping[str, _Moments]) -> _Values:
    """Combine the moments of all ranks with two sums: of the values, then of squared distances from the mean."""
    own = list(moments.values())
    home, sizes = own[0].mean.device, [moment.mean.numel() for moment in own]
    count = torch.cat(
        [torch.full((size,), moment.count, dtype=torch.float64) for moment, size in zip(own, sizes, strict=True)]
    )
    count = count.to(home)
    mean, squares = (torch.cat([getattr(moment, part).to(home) for moment in own]) for part in ("mean", "squares"))
    total, sums = all_reduce_sum(torch.stack([count, count * mean]))
    common = sums / total.clamp(min=1)
    squares = all_reduce_sum(squares + count * (mean - common).square())
    seen, variance = total > 1, squares / (total - 1).clamp(min=1)
    if not bool(seen.any()):
        raise ValueError("`batches`: expected images on at least one rank, got none")
    found: _Values = {}
    parts = (part.split(sizes) for part in (seen, common, variance))
    for (name, layer), is_seen, new_mean, new_var in zip(layers.items(), *parts, strict=True):
        before = _running_buffers(layer)
        new = (new_mean.to(before[0]), new_var.to(before[1]))
        found[name] = (
            torch.where(is_seen.to(before[0].device), new[0], before[0]),
            torch.where(is_seen.to(before[1].device), new[1], before[1]),
        )
    if not bool(torch.cat([value.to(home) for values in found.values() for value in values]).isfinite().all()):
        name = next(name for name, values in found.items() if not all(bool(value.isfinite().all()) for value in values))
        raise ValueError(
            f"`batches`: expected finite inputs of every layer, got NaN or infinity at {name or 'the layer'}; "
            "check that images and weights are finite"
        )
    return found
