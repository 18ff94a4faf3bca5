"""Convert thresholds from probabilities to the log domain in which selections compare them."""

from __future__ import annotations

import torch
from torch import Tensor

# Thresholds come from scores that were rounded elsewhere. A slack of a few float32 roundings ensures that the pixel
# that defines a threshold, and all its ties, are selected.
SLACK = 8 * torch.finfo(torch.float32).eps

# Stands for -log 0 of a threshold of 0: larger than any log-probability, while differences remain finite.
LARGE = 1e4


def there(number: Tensor, logits: Tensor) -> Tensor:
    """Move a host number () to the device of ``logits`` as (1,); return other tensors unchanged."""
    return number if number.ndim else logits.new_full((1,), float(number), dtype=torch.float64)


def score_bar(thresholds: Tensor, peaks: Tensor | None) -> Tensor:
    """(C,) float32 thresholds on the scale of ``pixel_scores``; ``peaks`` are those of the prior, if any."""
    return _bar(_relative(thresholds, peaks)).float()


def log_gain(thresholds: Tensor, peaks: Tensor | None) -> Tensor:
    """(C,) float32 ``-log(kc / Q)``, Q = 1 without a prior: added to ``Scores.gaps`` to re-weight by 1 / kc."""
    kc = _relative(thresholds, peaks)
    # Computed from the bar that scores are compared with: near certainty its slack must grow with the score.
    gain = (-torch.nn.functional.logsigmoid(_bar(kc))).clamp(max=LARGE)
    return torch.where(kc == torch.inf, -torch.inf, gain).float()


def _bar(kc: Tensor) -> Tensor:
    score = torch.logit(kc)
    return score - torch.where(score.isfinite(), SLACK * (1.0 + score.abs()), 0.0)


def _relative(thresholds: Tensor, peaks: Tensor | None) -> Tensor:
    """Thresholds relative to the largest possible confidence; infinite if above it, as no pixel can reach them."""
    kc = thresholds.double()
    if peaks is None:
        return kc.clamp(max=1.0)
    share = kc / peaks.double()
    return torch.where(share > 1.0 + SLACK, torch.inf, share.clamp(max=1.0))
