"""The least confidence that any label must have, whatever portion was asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks

__all__ = ["apply_floor"]


def apply_floor(thresholds: Tensor, floor: float | Tensor) -> Tensor:
    """Raise thresholds to a floor: a portion then never selects pixels below it.

    ``kc'_c = max(kc_c, f_c)``. A portion asks for the best pixels of a class even where none of them is good: the
    threshold of a class that the network hardly knows is then far below those of the others. With a floor of at least
    0.5 for every class ``select_reweighted`` selects what ``select_hard`` does, since no class can overrule the most
    probable one.

    Args:
        thresholds: (C,) floating point, from ``ClassBalancedThreshold`` or ``GlobalThreshold``.
        floor: a number in [0, 1], or (C,) floating point, one a class: that of ``PrecisionThreshold``, say. On any
            device. NaN leaves the threshold of its class as it is.

    Returns:
        (C,) float64, on the device of ``thresholds``; NaN where that is NaN.

    Raises:
        TypeError: ``thresholds`` is no floating-point tensor, or ``floor`` neither that nor a number.
        ValueError: ``thresholds`` is not (C,), ``floor`` has another shape, or a number is outside [0, 1].

    Example:
        >>> import torch
        >>> apply_floor(torch.tensor([0.98, 0.31, 1.0]), 0.5)
        tensor([0.9800, 0.5000, 1.0000], dtype=torch.float64)
    """
    _checks.check_tensor(thresholds, "thresholds")
    if not thresholds.is_floating_point():
        raise TypeError(f"`thresholds`: expected a floating-point dtype, got {thresholds.dtype}")
    if thresholds.ndim != 1:
        raise ValueError(f"`thresholds`: expected (C,), got {tuple(thresholds.shape)}")
    wide = thresholds.double()
    if not isinstance(floor, Tensor):
        _checks.check_real(floor, "floor", 0.0, 1.0)
        return wide.clamp(min=float(floor))
    if not floor.is_floating_point():
        raise TypeError(f"`floor`: expected a floating-point dtype, got {floor.dtype}")
    if floor.shape != thresholds.shape:
        raise ValueError(f"`floor`: expected a number or (C,) = {tuple(thresholds.shape)}, got {tuple(floor.shape)}")
    lowest = floor.to(wide)
    return torch.where(lowest > wide, lowest, wide)
