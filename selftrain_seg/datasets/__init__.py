"""Data sets: the embedded benchmark of synthetic streets."""

from selftrain_seg.datasets.streets import SyntheticStreets

__all__ = ["SyntheticStreets"]
