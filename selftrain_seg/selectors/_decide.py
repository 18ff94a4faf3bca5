"""Shared steps of the selectors with state: read a batch, label it by thresholds."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg.types import PseudoLabels


def observe(selector: Any, logits: Tensor, valid: Tensor | None, **wanted: Any) -> ops.Observation:
    """Check a batch against a selector and observe it."""
    _checks.check_logits(logits, selector.num_classes)
    _checks.check_valid(valid, logits)
    selector.check_home(logits, "logits")
    return ops.observe(logits, valid=valid, **wanted)


def label(batch: ops.Observation, thresholds: Tensor, ignore_index: int, *, strict: bool = False) -> PseudoLabels:
    """Label the pixels that reach (with ``strict``, exceed) their thresholds, (C,) or (B, C)."""
    labels = ops.decide(batch.labels, batch.confidence, thresholds, strict=strict, ignore_index=ignore_index)
    return PseudoLabels(labels, batch.confidence, predicted=batch.labels)
