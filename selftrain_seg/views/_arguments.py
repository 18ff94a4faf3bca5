"""What the functions of this room do with their arguments before any work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.types import IGNORE_INDEX


def check_range(value: Any, name: str, most: float, *, open_low: bool = False) -> tuple[float, float]:
    """Two numbers (low, high) with 0 <= low <= high <= most, or 0 < low with ``open_low``."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"`{name}`: expected (low, high), got {value!r}")
    low, high = value
    _checks.check_real(low, f"{name}[0]", 0.0, most, open_low=open_low)
    _checks.check_real(high, f"{name}[1]", float(low), most)
    return float(low), float(high)


def fill_value(tensor: Tensor, fill: Any) -> float:
    """The number itself if the dtype holds it; None: 255 in label maps (integers of rank 3), 0 in all others."""
    exact = not (tensor.is_floating_point() or tensor.is_complex())
    low, high = 0, 1
    if exact and tensor.dtype != torch.bool:
        info = torch.iinfo(tensor.dtype)
        low, high = info.min, info.max
    if fill is None:
        fill = IGNORE_INDEX if exact and tensor.ndim == 3 and tensor.dtype != torch.bool else 0
    _checks.check_real(fill, "fill", -torch.inf, torch.inf)
    if not exact:
        return float(fill)
    if not low <= fill <= high or int(fill) != fill:
        raise ValueError(f"`fill`: expected a value that {tensor.dtype} can hold, got {fill}")
    return int(fill)
