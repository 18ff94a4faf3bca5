"""kc: how confident a prediction must be, per class, for a chosen portion of it to be selected."""

from selftrain_seg.thresholds.estimators import ClassBalancedThreshold, GlobalThreshold
from selftrain_seg.thresholds.schedules import (
    CBST_SP_PORTIONS,
    DST_CBC_PORTIONS,
    GTA5_SOURCE_PORTIONS,
    IAST_PORTIONS,
    SYNTHIA_SOURCE_PORTIONS,
    PortionSchedule,
    linear_portion,
    source_subset,
)
from selftrain_seg.thresholds.sketch import ConfidenceSketch

__all__ = [
    "CBST_SP_PORTIONS",
    "DST_CBC_PORTIONS",
    "GTA5_SOURCE_PORTIONS",
    "IAST_PORTIONS",
    "SYNTHIA_SOURCE_PORTIONS",
    "ClassBalancedThreshold",
    "ConfidenceSketch",
    "GlobalThreshold",
    "PortionSchedule",
    "linear_portion",
    "source_subset",
]
