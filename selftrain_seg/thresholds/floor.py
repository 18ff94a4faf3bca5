"""A minimum confidence for labels, independent of the portion."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks

__all__ = ["apply_floor"]


def apply_floor(thresholds: Tensor, floor: float | Tensor) -> Tensor:
    """Raise thresholds to a floor, below which no pixel is selected.

    ``kc'_c = max(kc_c, f_c)``. A portion selects the best pixels of a class even if none of them is good, so a class
    that the network hardly knows gets a much lower threshold than the others. If every floor is at least 0.5,
    ``select_reweighted`` gives the same labels as ``select_hard``, since no class can beat the most probable one.

    Args:
        thresholds: (C,) floating point, from ``ClassBalancedThreshold`` or ``GlobalThreshold``.
        floor: a number in [0, 1], or (C,) floating point with one per class, for example from ``PrecisionThreshold``.
            On any device. NaN keeps the threshold of its class.

    Returns:
        (C,) float64, on the device of ``thresholds``; NaN where that is NaN.

    Raises:
        TypeError: ``thresholds`` is not a floating-point tensor, or ``floor`` is neither a floating-point tensor nor a
            number.
        ValueError: ``thresholds`` is not (C,), ``floor`` has a different shape, or a number is outside [0, 1].

    Example:
        >>> import torch
        >>> apply_floor(torch.tensor([0.98, 0.31, 1.0]), 0.5)
        tensor([0.9800, 0.5000, 1.0000], dtype=torch.float64)
    """
    _checks.check_vector(thresholds, "thresholds")
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
