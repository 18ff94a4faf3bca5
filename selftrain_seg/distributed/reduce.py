"""One all-reduce, and nothing at all in a single process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["all_reduce_max", "all_reduce_sum"]


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum of ``tensor`` over all ranks of the default process group.

    Every rank gets the same values. Integer counts add up exactly, in any order, so statistics built on them
    equal those of one process bit for bit. Without an initialised process group, or with one rank, the tensor
    itself is returned.

    Args:
        tensor: any shape and dtype the backend supports, the same on every rank. It is not changed.

    Returns:
        A tensor of the same shape, dtype and device.

    State / distributed: a collective, so every rank must call it. A CPU tensor under a GPU-only backend
    (NCCL) travels through the current GPU.

    Example:
        >>> import torch
        >>> all_reduce_sum(torch.tensor([1, 2]))
        tensor([1, 2])
    """
    return _all_reduce(tensor, dist.ReduceOp.SUM) if rank_and_ranks()[1] > 1 else tensor


def all_reduce_max(tensor: Tensor) -> Tensor:
    """Return the elementwise maximum of ``tensor`` over all ranks; in all else as ``all_reduce_sum``.

    Args:
        tensor: any shape and dtype the backend supports, the same on every rank. It is not changed.

    Returns:
        A tensor of the same shape, dtype and device.

    Example:
        >>> import torch
        >>> all_reduce_max(torch.tensor([1, 2]))
        tensor([1, 2])
    """
    return _all_reduce(tensor, dist.ReduceOp.MAX) if rank_and_ranks()[1] > 1 else tensor


def rank_and_ranks() -> tuple[int, int]:
    """This process's rank and the number of ranks in the default process group: (0, 1) without one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _all_reduce(tensor: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
    home = tensor.device
    if home.type == "cpu" and dist.get_backend() == "nccl":
        total = tensor.to(torch.device("cuda", torch.cuda.current_device()))
    else:
        total = tensor.clone()
    dist.all_reduce(total, op=op)
    return total.to(home)
