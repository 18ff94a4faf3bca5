"""Disable autocast for computations that need full precision."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor


def as_given(tensor: Tensor) -> AbstractContextManager[None]:
    """Return a context that disables autocast on the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False)
