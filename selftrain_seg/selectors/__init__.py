"""Logits and thresholds in, pseudo-labels out."""

from selftrain_seg.selectors.hard import select_hard
from selftrain_seg.selectors.instance_adaptive import InstanceAdaptiveSelector
from selftrain_seg.selectors.reweighted import select_reweighted
from selftrain_seg.selectors.running_confidence import RunningConfidenceSelector
from selftrain_seg.selectors.soft import select_soft
from selftrain_seg.selectors.statistics import SelectionStatistics, SelectionSummary

__all__ = [
    "InstanceAdaptiveSelector",
    "RunningConfidenceSelector",
    "SelectionStatistics",
    "SelectionSummary",
    "select_hard",
    "select_reweighted",
    "select_soft",
]
