"""Steps that succeed or fail on all ranks together, so that no rank waits forever."""

from __future__ import annotations

from collections.abc import Callable

import torch

from selftrain_seg.distributed.reduce import all_reduce_max, rank_and_ranks


def rank() -> int:
    return rank_and_ranks()[0]


def world_size() -> int:
    return rank_and_ranks()[1]


def on_all_ranks(step: Callable[[], None], *, first_only: bool = False) -> None:
    """Run the step on every rank, or on rank 0 only, and wait for all; if it fails on one, all ranks raise."""
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
        raise RuntimeError(f"rank {int(failed) - 1} failed; see its error message")
