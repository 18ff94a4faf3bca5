"""Logits and thresholds in, pseudo-labels out."""

from selftrain_seg.selectors.hard import select_hard
from selftrain_seg.selectors.reweighted import select_reweighted
from selftrain_seg.selectors.soft import select_soft
from selftrain_seg.selectors.statistics import SelectionStatistics

__all__ = ["SelectionStatistics", "select_hard", "select_reweighted", "select_soft"]
