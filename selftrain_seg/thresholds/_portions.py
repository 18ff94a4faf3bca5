"""Argument checks of the functions on portions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selftrain_seg import _checks


def check_class_counts(value: Any, name: str) -> None:
    """(C,) pixel counts, or shares."""
    _checks.check_tensor(value, name)
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"`{name}`: expected counts of an integer or floating-point dtype, got {value.dtype}")
    if value.ndim != 1:
        raise ValueError(f"`{name}`: expected (C,), got {tuple(value.shape)}")


def per_class(portion: Any, like: Tensor) -> Tensor:
    """Return a number in [0, 1] or (C,) portions as (C,) float64 on the device of ``like`` (C,)."""
    if not isinstance(portion, Tensor):
        _checks.check_real(portion, "portion", 0.0, 1.0)
        return torch.ones_like(like, dtype=torch.float64) * float(portion)
    if not portion.is_floating_point():
        raise TypeError(f"`portion`: expected a floating-point dtype, got {portion.dtype}")
    if portion.shape != like.shape:
        raise ValueError(f"`portion`: expected a number or (C,) = {tuple(like.shape)}, got {tuple(portion.shape)}")
    return decimals(portion).to(like.device)


def decimals(values: Tensor) -> Tensor:
    """Return values as float64, with float32 rounded to 6 decimals: 0.7 is 0.7, not 0.699999988."""
    values = values.detach()
    return values if values.dtype == torch.float64 else values.double().round(decimals=6)
