"""Check indices of the caller; negative ones must not count from the end."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks


def check_indices(indices: Tensor, count: int, name: str = "indices") -> None:
    """Raise ValueError unless all are in [0, count); on another device than the CPU, only inside ``value_checks()``."""
    if torch.compiler.is_compiling() or not (_checks._value_checks or indices.device.type == "cpu"):
        return
    wrong = indices[(indices < 0) | (indices >= count)]
    if wrong.numel():
        raise ValueError(f"`{name}`: expected values in [0, {count}), got {int(wrong[0])}")
