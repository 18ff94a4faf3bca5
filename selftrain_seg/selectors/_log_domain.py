"""Thresholds as selectors compare them: probabilities in, log-domain values out."""

from __future__ import annotations

import torch
from torch import Tensor

# Thresholds come from scores that other arithmetic rounded. A slack of some float32 roundings keeps the very
# pixel that defines a threshold, and all its ties, on the selected side.
_SLACK = 8 * torch.finfo(torch.float32).eps

# -log of a threshold of 0: outweighs every log-probability, and differences are still finite.
_LARGE = 1e4


def threshold_scores(thresholds: Tensor, device: torch.device, *, with_prior: bool) -> Tensor:
    """(C,) float32 thresholds on the scale of ``pixel_scores``: log-odds, or logarithms under a prior."""
    kc = thresholds.double()
    score = kc.log() if with_prior else torch.logit(kc.clamp(max=1.0))
    slack = torch.where(score.isfinite(), _SLACK * (1.0 + score.abs()), 0.0)
    return (score - slack).float().to(device, non_blocking=True)


def negative_log(thresholds: Tensor, device: torch.device, *, with_prior: bool) -> Tensor:
    """(C,) float32 ``-log kc``: what re-weighting by 1 / kc adds to a log-probability."""
    kc = thresholds.double()
    if not with_prior:
        kc = kc.clamp(max=1.0)
    gain = (-kc.log()).clamp(max=_LARGE)
    slack = torch.where(gain.isfinite(), _SLACK * gain.abs() + (_SLACK if with_prior else 0.0), 0.0)
    return (gain + slack).float().to(device, non_blocking=True)
