"""Sums over ranks: what every statistic of this package needs to be the same on all of them."""

from selftrain_seg.distributed.reduce import all_reduce_max, all_reduce_sum

__all__ = ["all_reduce_max", "all_reduce_sum"]
