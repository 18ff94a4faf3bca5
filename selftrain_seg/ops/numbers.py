"""Move small inputs to a device without synchronisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def integers(values: Sequence[int], device: torch.device) -> Tensor:
    """(N,) int64. On a GPU they are passed as launch arguments: a copy would synchronise and break CUDA graphs.

    Args:
        values: any number of integers.
        device: device of the result.
    """
    if device.type == "cpu" or not values:
        return torch.tensor(list(values), dtype=torch.int64, device=device)
    out = torch.zeros(len(values), dtype=torch.int64, device=device)
    torch._foreach_add_(list(out.unbind()), list(values))
    return out


def near(values: Tensor, like: Tensor) -> Tensor:
    """Move a small tensor to the device of ``like``.

    A copy from the host to a GPU does not synchronise, but cannot be part of a CUDA graph.

    Args:
        values: any tensor, on any device.
        like: a tensor on the target device.
    """
    return values.to(like.device, non_blocking=values.device.type == "cpu")
