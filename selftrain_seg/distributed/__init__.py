"""Reductions over ranks, used by all statistics of this package."""

from selftrain_seg.distributed.reduce import all_reduce_max, all_reduce_sum

__all__ = ["all_reduce_max", "all_reduce_sum"]
