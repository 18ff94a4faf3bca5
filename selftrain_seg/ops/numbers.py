"""Small numbers of the caller, on a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def integers(values: Sequence[int], device: torch.device) -> Tensor:
    """(N,) int64. A GPU gets them as arguments of a launch: a copy would make the host wait, and fit in no CUDA graph.

    Args:
        values: any number of integers.
        device: where the result lies.
    """
    if device.type == "cpu" or not values:
        return torch.tensor(list(values), dtype=torch.int64, device=device)
    out = torch.zeros(len(values), dtype=torch.int64, device=device)
    torch._foreach_add_(list(out.unbind()), list(values))
    return out


def near(values: Tensor, like: Tensor) -> Tensor:
    """What holds a number a class, on the device of ``like``; it may lie anywhere.

    The host does not wait for what it sends to a GPU; but such a copy cannot be part of a CUDA graph.

    Args:
        values: any tensor.
        like: any other.
    """
    return values.to(like.device, non_blocking=values.device.type == "cpu")
