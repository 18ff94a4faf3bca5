"""What must not be computed in half precision, whatever autocast says."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor


def as_given(tensor: Tensor) -> AbstractContextManager[None]:
    """A ``with`` block without autocast on the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False)
