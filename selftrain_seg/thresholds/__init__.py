"""kc: how confident a prediction must be, per class, for a chosen portion of it to be selected."""

from selftrain_seg.thresholds.estimators import ClassBalancedThreshold, GlobalThreshold
from selftrain_seg.thresholds.schedules import linear_portion
from selftrain_seg.thresholds.sketch import ConfidenceSketch

__all__ = ["ClassBalancedThreshold", "ConfidenceSketch", "GlobalThreshold", "linear_portion"]
