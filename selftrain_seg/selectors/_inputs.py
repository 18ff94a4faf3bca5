"""What the selectors with given thresholds share: checked, detached inputs and room for their results."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.confidence._scores import prior_peaks


class Inputs(NamedTuple):
    """Checked and detached inputs, and the peaks of the prior where there is one."""

    logits: Tensor
    thresholds: Tensor
    prior: Tensor | None
    peaks: Tensor | None


def checked(logits: Tensor, thresholds: Tensor, prior: Tensor | None) -> Inputs:
    _checks.check_logits(logits)
    _checks.check_thresholds(thresholds, logits)
    if prior is None:
        return Inputs(logits.detach(), thresholds.detach(), None, None)
    _checks.check_prior(prior, logits)
    prior = prior.detach()
    return Inputs(logits.detach(), thresholds.detach(), prior, prior_peaks(prior))


def empty_maps(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised (labels int64, predicted int64, confidence float32), each (B, H, W)."""
    shape = (logits.shape[0], *logits.shape[-2:])
    labels = torch.empty(shape, dtype=torch.int64, device=logits.device)
    return labels, torch.empty_like(labels), torch.empty(shape, dtype=torch.float32, device=logits.device)
