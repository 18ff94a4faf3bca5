"""The one place where logits become scores. Thresholds and selectors both read it, so they always agree.

A *score* is what pixels are ranked by and thresholds are compared on: the log-odds of the winning class,
``o = -log s`` with ``s = Σ_{c≠ŷ} exp(z_c - z_ŷ)``. Under a prior, where pixels are ranked by ``p_c q_c``, it is the
log-odds of ``p_c q_c / Q_c`` with Q_c the peak of the class's prior: at most 1, in the same order, and as able to tell
saturated pixels apart where q is at its peak. NaN marks a pixel that must not be used; it is never counted and, as
comparisons with NaN are false, never selected.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selftrain_seg._numerics import by_class, exponential, winner, without


class Scores(NamedTuple):
    """A block's pixels: winning class, score, log-confidence, and what selectors build on."""

    labels: Tensor  # (b, h, w) int64
    score: Tensor  # (b, h, w) float32; NaN where the pixel must not be used
    log_confidence: Tensor  # (b, h, w) float32: log p, or log p q under a prior; NaN likewise
    gaps: Tensor  # (b, C, h, w) float32: z_c - max z, plus log(q_c / Q_c) under a prior; never positive
    log_norm: Tensor  # (b, h, w) float32: log1p(s), so that log p_c = (z_c - max z) - log_norm; NaN if unusable
    others: Tensor  # (b, C, h, w) float32: exp(z_c - max z), but 0 for the largest z


def prior_peaks(prior: Tensor) -> Tensor:
    """(C,) float32: the largest value of each class's prior, Q."""
    return prior.flatten(1).amax(dim=1).float() if prior[0].numel() else prior.new_ones(len(prior)).float()


def pixel_scores(logits: Tensor, prior: Tensor | None = None, peaks: Tensor | None = None) -> Scores:
    """Score a (b, C, h, w) block. Everything is float32, whatever the logits' dtype."""
    labels, gaps, others, rest = _read(logits)
    log_norm = torch.log1p(rest)
    if prior is None or peaks is None:
        return Scores(labels, -torch.log(rest), -log_norm, gaps, log_norm, others)
    weighted, first = gaps + prior.float().log(), labels
    top, labels, _ = winner(weighted)
    at = labels.unsqueeze(1)
    mine = others.gather(1, at).squeeze(1)
    # Odds against the winner: s itself where it also has the largest z; else it is known without cancellation.
    against = torch.where(labels == first, rest, (1.0 + rest - mine) / mine)
    q, peak = prior.float().expand_as(gaps).gather(1, at).squeeze(1), peaks.to(labels.device)[labels]
    score = q.log() - torch.log((peak - q).clamp(min=0.0) + peak * against)
    relative = gaps + (prior.float().log() - peaks.to(labels.device).log().view(-1, 1, 1)).nan_to_num(
        nan=-torch.inf, neginf=-torch.inf
    )
    return Scores(labels, score, top.squeeze(1) - log_norm, relative, log_norm, others)


def class_scores(logits: Tensor, prior: Tensor | None = None, peaks: Tensor | None = None) -> Tensor:
    """Score every class at every pixel: (b, C, h, w) float32, on the same scale as ``pixel_scores``."""
    labels, gaps, others, rest = _read(logits)
    rest = rest.unsqueeze(1)
    # odds of c = exp(gap_c) / Σ_{j≠c} exp(gap_j). For a class that did not win that sum is at least 1, so the
    # difference loses nothing; for the winner it is `rest` itself.
    against = (1.0 + rest - others).scatter_(1, labels.unsqueeze(1), rest)
    if prior is None or peaks is None:
        return gaps - against.log()
    # Multiplied through by exp(gap_c), so that a class with p = 0 has score -inf and not NaN.
    q, peak, mine = prior.float(), peaks.to(gaps.device).view(-1, 1, 1), gaps.exp()
    return (q * mine).log() - torch.log((peak - q).clamp(min=0.0) * mine + peak * against)


def _read(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Winner (b, h, w), z - max z and its exponentials but the winner's (b, C, h, w), and their sum (b, h, w)."""
    top, labels, gaps = winner(by_class(logits).float())
    others = without(exponential(gaps), labels)
    # top - top is 0, or NaN where the largest logit is NaN or infinite: such a pixel says nothing.
    rest = others.sum(dim=1) + (top - top).squeeze(1)
    return labels, gaps, others, rest
