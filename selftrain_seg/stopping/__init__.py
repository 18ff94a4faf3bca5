"""When to stop, and whether to start: rounds judged without target labels, the best one kept."""

from selftrain_seg.stopping.assess import Assessment, assess_check
from selftrain_seg.stopping.check import RoundCheck, Verdict
from selftrain_seg.stopping.drift import class_drift

__all__ = ["Assessment", "RoundCheck", "Verdict", "assess_check", "class_drift"]
