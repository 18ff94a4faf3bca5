"""Steps that all ranks take together, or fail together instead of waiting for each other for ever."""

from __future__ import annotations

from collections.abc import Callable

import torch

from selftrain_seg.distributed.reduce import all_reduce_max, rank_and_ranks


def rank() -> int:
    return rank_and_ranks()[0]


def world_size() -> int:
    return rank_and_ranks()[1]


def together(step: Callable[[], None], *, first_only: bool = False) -> None:
    """Take the step on every rank, or on rank 0 only, and return once all have; if one fails, all raise."""
    error: Exception | None = None
    if not first_only or rank() == 0:
        try:
            step()
        except Exception as caught:
            error = caught
    failed = all_reduce_max(torch.tensor([0 if error is None else rank() + 1]))
    if error is not None:
        raise error
    if bool(failed > 0):
        raise RuntimeError(f"rank {int(failed) - 1} failed; its own message says why")
