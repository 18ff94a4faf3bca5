"""Statistics taken out of a network, put into it, and mixed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from selftrain_seg import _checks
from selftrain_seg.batchnorm._layers import MEAN, VAR, batchnorm_layers, join

__all__ = ["get_statistics", "mix_statistics", "set_statistics"]


def get_statistics(net: nn.Module) -> dict[str, Tensor]:
    """Copy the running statistics out of a network's BatchNorm layers.

    Args:
        net: a network, wrapped in ``DistributedDataParallel`` or compiled or not. Layers of any dimension count,
            ``SyncBatchNorm`` included; those with ``track_running_stats=False`` do not.

    Returns:
        ``running_mean`` and ``running_var`` of each layer, by their names in the ``state_dict`` of the bare network:
        they can be saved, and loaded with ``strict=False``. Empty if there is no such layer.

    Raises:
        TypeError: ``net`` is no ``torch.nn.Module``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> get_statistics(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)))
        {'1.running_mean': tensor([0., 0.]), '1.running_var': tensor([1., 1.])}
    """
    return {name: tensor.detach().clone() for name, tensor in _tensors(net).items()}


@torch.no_grad()
def set_statistics(net: nn.Module, statistics: Mapping[str, Tensor]) -> None:
    """Put running statistics into a network's BatchNorm layers.

    Weights, modes and the counters ``num_batches_tracked`` stay as they are. Nothing is changed if there is an error.

    Args:
        net: the network, as for ``get_statistics``.
        statistics: of all its layers and nothing else, as ``get_statistics``, ``estimate_statistics`` and
            ``mix_statistics`` return them; converted to the layers' dtype and device.

    Raises:
        TypeError: ``net`` is no ``torch.nn.Module``.
        ValueError: statistics are missing, of layers that the network has not, or of another shape.

    Example:
        >>> import torch
        >>> norm = torch.nn.BatchNorm2d(2)
        >>> set_statistics(norm, {"running_mean": torch.tensor([1.0, 2.0]), "running_var": torch.ones(2)})
        >>> norm.running_mean
        tensor([1., 2.])
    """
    own = _tensors(net)
    _check_alike(own, statistics, "statistics", "the layers of `net`")
    for name, tensor in own.items():
        tensor.copy_(statistics[name])


@torch.no_grad()
def mix_statistics(
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    alpha: float = 0.1,
    *,
    variance: str = "interpolated",
) -> dict[str, Tensor]:
    """Mix the statistics of two domains.

    ``mean = alpha · target + (1 - alpha) · source``, and the variance likewise, or of the mixture of both domains,
    which adds ``alpha · (1 - alpha) · (mean_target - mean_source)²``.

    Args:
        source: statistics, as ``get_statistics`` returns them.
        target: those of the same layers, estimated on target images.
        alpha: the target's share in [0, 1]. 0 gives the source's and 1 the target's, to the bit. 0.1 to 0.2 is safe for
            pre-trained networks; small networks trained from scratch often want 1.
        variance: ``"interpolated"``, as Schneider et al., or ``"mixture"``, by the law of total variance.

    Returns:
        The mixed statistics, in the dtype and on the device of ``source``; computed in float64.

    Raises:
        TypeError: ``alpha`` is no number.
        ValueError: ``alpha`` is outside [0, 1]; ``variance`` is another word; the layers or shapes differ.

    References:
        Schneider et al., "Improving Robustness Against Common Corruptions by Covariate Shift Adaptation", NeurIPS 2020,
        arXiv:2006.16971, Eq. 2, where alpha is n / (N + n).

    Example:
        >>> import torch
        >>> source = {"running_mean": torch.tensor([0.0]), "running_var": torch.tensor([1.0])}
        >>> target = {"running_mean": torch.tensor([2.0]), "running_var": torch.tensor([3.0])}
        >>> mix_statistics(source, target, 0.5)
        {'running_mean': tensor([1.]), 'running_var': tensor([2.])}
        >>> mix_statistics(source, target, 0.5, variance="mixture")["running_var"]  # 2 + 1/4 · (2 - 0)²
        tensor([3.])
    """
    _checks.check_real(alpha, "alpha", 0.0, 1.0)
    _checks.check_choice(variance, "variance", ("interpolated", "mixture"))
    _check_alike(source, target, "target", "`source`")
    mixed = {}
    for name, one in source.items():
        other = target[name].to(one.device)
        value = torch.lerp(one.double(), other.double(), float(alpha))
        if variance == "mixture" and name.endswith(VAR):
            mean = name.removesuffix(VAR) + MEAN
            apart = target[mean].to(one.device).double() - source[mean].double()
            value = value + alpha * (1 - alpha) * apart.square()
        mixed[name] = value.to(one.dtype)
    return mixed


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    """The running statistics themselves."""
    return {
        join(name, entry): getattr(layer, entry)
        for name, layer in batchnorm_layers(net).items()
        for entry in (MEAN, VAR)
    }


def _check_alike(own: Mapping[str, Tensor], other: Mapping[str, Tensor], name: str, whose: str) -> None:
    """The same layers and shapes."""
    if own.keys() != other.keys():
        raise ValueError(
            f"`{name}`: expected the running_mean and running_var of {whose} and nothing else; missing: "
            f"{_some(own.keys() - other.keys())}; added: {_some(other.keys() - own.keys())}"
        )
    for entry, tensor in own.items():
        if tensor.shape != other[entry].shape:
            raise ValueError(
                f"`{name}`: expected shape {tuple(tensor.shape)} for {entry}, got {tuple(other[entry].shape)}"
            )


def _some(names: set[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "") or "none"
