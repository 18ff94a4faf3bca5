"""Thresholds kc: the confidence per class above which pixels are selected."""

from selftrain_seg.thresholds.agreement import ClassAgreement
from selftrain_seg.thresholds.aligned import aligned_portion
from selftrain_seg.thresholds.cautious import cautious_portion
from selftrain_seg.thresholds.estimators import ClassBalancedThreshold, GlobalThreshold
from selftrain_seg.thresholds.floor import apply_floor
from selftrain_seg.thresholds.precision import PrecisionThreshold
from selftrain_seg.thresholds.reliable import reliable_portion
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
    "ClassAgreement",
    "ClassBalancedThreshold",
    "ConfidenceSketch",
    "GlobalThreshold",
    "PortionSchedule",
    "PrecisionThreshold",
    "aligned_portion",
    "apply_floor",
    "cautious_portion",
    "linear_portion",
    "reliable_portion",
    "source_subset",
]
