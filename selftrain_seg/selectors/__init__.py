"""Selectors turn logits and thresholds into pseudo-labels.

Functions use given thresholds; modules adapt their thresholds to the predictions and have state.
"""

from selftrain_seg.selectors.fixed import select_fixed
from selftrain_seg.selectors.flexmatch import FlexMatchSelector
from selftrain_seg.selectors.freematch import FreeMatchSelector
from selftrain_seg.selectors.hard import select_hard
from selftrain_seg.selectors.instance_adaptive import InstanceAdaptiveSelector
from selftrain_seg.selectors.reweighted import select_reweighted
from selftrain_seg.selectors.running_confidence import RunningConfidenceSelector
from selftrain_seg.selectors.soft import select_soft
from selftrain_seg.selectors.softmatch import SoftMatchSelector
from selftrain_seg.selectors.statistics import SelectionStatistics, SelectionSummary

__all__ = [
    "FlexMatchSelector",
    "FreeMatchSelector",
    "InstanceAdaptiveSelector",
    "RunningConfidenceSelector",
    "SelectionStatistics",
    "SelectionSummary",
    "SoftMatchSelector",
    "select_fixed",
    "select_hard",
    "select_reweighted",
    "select_soft",
]
