"""Arguments of several selectors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.ops.numbers import near


def thresholds_near(thresholds: Any, logits: Tensor) -> Tensor:
    """Return (C,) thresholds on the device of ``logits``, or () on the host for a number in [0, 1]."""
    checked = _checks.thresholds_for(thresholds, logits)
    return near(checked, logits) if checked.ndim else checked
