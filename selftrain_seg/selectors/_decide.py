"""What the selectors with running state share: a checked reading before their rule, and labels after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg.types import PseudoLabels


def read(selector: Any, logits: Tensor, valid: Tensor | None, *, class_sums: bool = False) -> ops.Reading:
    """Check a batch against a selector and read it."""
    _checks.check_logits(logits, selector.num_classes)
    _checks.check_valid(valid, logits)
    selector.check_home(logits, "logits")
    return ops.read(logits, valid=valid, class_sums=class_sums)


def decide(
    batch: ops.Reading, keep: Tensor, ignore_index: int, *, confidence: Tensor, pixel_weight: Tensor | None = None
) -> PseudoLabels:
    """Label the usable pixels to keep."""
    labels = torch.where(keep & ops.usable(batch.score), batch.labels, ignore_index)
    return PseudoLabels(labels, confidence, pixel_weight=pixel_weight, predicted=batch.labels)


def moving_average(old: Tensor, new: Tensor, momentum: float, count: Tensor) -> Tensor:
    """``momentum · old + (1 - momentum) · new``, but ``old`` where the batch had nothing to count."""
    keep = 1.0 - (1.0 - momentum) * (count > 0).double()
    return keep * old + (1.0 - keep) * new
