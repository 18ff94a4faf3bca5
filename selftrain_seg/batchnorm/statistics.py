"""Get, set and mix BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from selftrain_seg import _checks
from selftrain_seg.batchnorm._layers import MEAN, VAR, batchnorm_layers, join

__all__ = ["get_statistics", "mix_statistics", "set_statistics"]


def get_statistics(net: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the running statistics of a network's BatchNorm layers.

    Args:
        net: a network, also inside ``DistributedDataParallel`` or compiled. Layers of all dimensions and
            ``SyncBatchNorm`` are included; those with ``track_running_stats=False`` are not.

    Returns:
        ``running_mean`` and ``running_var`` of each layer, with their names in the ``state_dict`` of the bare network,
        which can load them with ``strict=False``. Empty if there are no such layers.

    Raises:
        TypeError: ``net`` is not a ``torch.nn.Module``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> get_statistics(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)))
        {'1.running_mean': tensor([0., 0.]), '1.running_var': tensor([1., 1.])}
    """
    return {name: tensor.detach().clone() for name, tensor in _tensors(net).items()}


@torch.no_grad()
def set_statistics(net: nn.Module, statistics: Mapping[str, Tensor]) -> None:
    """Set the running statistics of a network's BatchNorm layers.

    Weights, modes and ``num_batches_tracked`` do not change. After an error nothing has changed.

    Args:
        net: the network, as in ``get_statistics``.
        statistics: statistics of exactly the layers of ``net``, as returned by ``get_statistics``,
            ``estimate_statistics`` and ``mix_statistics``; converted to the dtype and device of the layers.

    Raises:
        TypeError: ``net`` is not a ``torch.nn.Module``.
        ValueError: statistics are missing, belong to unknown layers, or have a different shape.

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

    ``mean = alpha · target + (1 - alpha) · source``, and the same for the variance. ``variance="mixture"`` also adds
    ``alpha · (1 - alpha) · (mean_target - mean_source)²`` to the variance.

    Args:
        source: source statistics, from ``get_statistics``.
        target: statistics of the same layers, estimated on target images.
        alpha: weight of the target, in [0, 1]. 0 returns exactly the source and 1 exactly the target. 0.1 to 0.2 is
            safe for pre-trained networks; 1 is often better for small networks trained from scratch.
        variance: ``"interpolated"``, as in Schneider et al., or ``"mixture"``, the variance of the mixture of both
            domains.

    Returns:
        The mixed statistics, in the dtype and on the device of ``source``; computed in float64.

    Raises:
        TypeError: ``alpha`` is not a number.
        ValueError: ``alpha`` is outside [0, 1], ``variance`` is unknown, or layers or shapes differ.

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
    """Return the running statistics without copying."""
    return {
        join(name, entry): getattr(layer, entry)
        for name, layer in batchnorm_layers(net).items()
        for entry in (MEAN, VAR)
    }


def _check_alike(own: Mapping[str, Tensor], other: Mapping[str, Tensor], name: str, whose: str) -> None:
    """Check that two sets of statistics have the same layers and shapes."""
    if own.keys() != other.keys():
        raise ValueError(
            f"`{name}`: expected exactly the running_mean and running_var of {whose}; missing: "
            f"{_first_names(own.keys() - other.keys())}; unexpected: {_first_names(other.keys() - own.keys())}"
        )
    for entry, tensor in own.items():
        if tensor.shape != other[entry].shape:
            raise ValueError(
                f"`{name}`: expected shape {tuple(tensor.shape)} for {entry}, got {tuple(other[entry].shape)}"
            )


def _first_names(names: set[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "") or "none"
