"""Stopping rules: judge rounds without target labels and keep the best one."""

from selftrain_seg.stopping.assess import Assessment, assess_check
from selftrain_seg.stopping.check import RoundCheck, Verdict
from selftrain_seg.stopping.drift import class_drift

__all__ = ["Assessment", "RoundCheck", "Verdict", "assess_check", "class_drift"]
