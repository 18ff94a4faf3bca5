"""Argument checks of the views."""

from __future__ import annotations

from typing import Any

from selftrain_seg import _checks


def check_range(value: Any, name: str, most: float, *, open_low: bool = False) -> tuple[float, float]:
    """Return (low, high) as floats, with 0 <= low <= high <= most, or 0 < low with ``open_low``."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"`{name}`: expected (low, high), got {value!r}")
    low, high = value
    _checks.check_real(low, f"{name}[0]", 0.0, most, open_low=open_low)
    _checks.check_real(high, f"{name}[1]", float(low), most)
    return float(low), float(high)
