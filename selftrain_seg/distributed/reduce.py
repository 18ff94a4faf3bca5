"""All-reduce over the default process group, without effect in a single process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["all_reduce_max", "all_reduce_sum"]


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum of ``tensor`` over all ranks of the default process group.

    All ranks get the same values. Integer counts add up exactly in any order, so statistics of counts are bit-identical
    to those of a single process. Without an initialised process group, or with one rank, ``tensor`` itself is returned.

    Args:
        tensor: any shape and dtype that the backend supports, the same on every rank. It is not changed.

    Returns:
        A tensor of the same shape, dtype and device.

    State / distributed: a collective, so every rank must call it. With NCCL, a CPU tensor is copied to the current GPU
    and back.

    Example:
        >>> import torch
        >>> all_reduce_sum(torch.tensor([1, 2]))
        tensor([1, 2])
    """
    return _all_reduce(tensor, dist.ReduceOp.SUM) if rank_and_ranks()[1] > 1 else tensor


def all_reduce_max(tensor: Tensor) -> Tensor:
    """Return the elementwise maximum of ``tensor`` over all ranks; otherwise like ``all_reduce_sum``.

    Args:
        tensor: any shape and dtype that the backend supports, the same on every rank. It is not changed.

    Returns:
        A tensor of the same shape, dtype and device.

    Example:
        >>> import torch
        >>> all_reduce_max(torch.tensor([1, 2]))
        tensor([1, 2])
    """
    return _all_reduce(tensor, dist.ReduceOp.MAX) if rank_and_ranks()[1] > 1 else tensor


def rank_and_ranks() -> tuple[int, int]:
    """Return the rank of this process and the number of ranks, (0, 1) without a process group."""
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
