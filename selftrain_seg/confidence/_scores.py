"""The one place where logits become scores. Thresholds and selectors both read it, so they always agree.

A *score* is what pixels are ranked by and thresholds are compared on. Without a prior it is the log-odds of the
winning class, ``o = -log s`` with ``s = Σ_{c≠ŷ} exp(z_c - z_ŷ)``. With a prior, whose product with a probability
may exceed 1 and so has no odds, it is ``log(p_c q_c)``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selftrain_seg._numerics import winner


class Scores(NamedTuple):
    """A block's pixels: winning class, score, log-confidence, and what selectors build on."""

    labels: Tensor  # (b, h, w) int64
    score: Tensor  # (b, h, w) float32; -inf where the pixel must not be used
    log_confidence: Tensor  # (b, h, w) float32; -inf likewise
    gaps: Tensor  # (b, C, h, w) float32: z_c - max z, plus log q_c under a prior; never positive without one
    log_norm: Tensor  # (b, h, w) float32: log1p(s), so that log p_c = (z_c - max z) - log_norm; NaN if unusable
    others: Tensor  # (b, C, h, w) float32: exp(z_c - max z), but 0 for the winner


def pixel_scores(logits: Tensor, prior: Tensor | None = None) -> Scores:
    """Score a (b, C, h, w) block. Everything is float32, whatever the logits' dtype."""
    labels, gaps, others, rest = _read(logits)
    log_norm = torch.log1p(rest)
    if prior is None:
        score, log_confidence = -torch.log(rest), -log_norm
    else:
        gaps = gaps + prior.float().log()
        top, labels, _ = winner(gaps)
        score = log_confidence = top.squeeze(1) - log_norm
    return Scores(labels, nan_to_never(score), nan_to_never(log_confidence), gaps, log_norm, others)


def class_scores(logits: Tensor, prior: Tensor | None = None) -> Tensor:
    """Score every class at every pixel: (b, C, h, w) float32, on the same scale as ``pixel_scores``."""
    labels, gaps, others, rest = _read(logits)
    rest = rest.unsqueeze(1)
    if prior is not None:
        return nan_to_never(gaps + prior.float().log() - torch.log1p(rest))
    # odds of c = exp(gap_c) / Σ_{j≠c} exp(gap_j). For a class that did not win that sum is at least 1, so the
    # difference loses nothing; for the winner it is `rest` itself.
    against = (1.0 + rest - others).scatter_(1, labels.unsqueeze(1), rest)
    return nan_to_never(gaps - against.log())


def _read(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Winner (b, h, w), z - max z and its exponentials but the winner's (b, C, h, w), and their sum (b, h, w)."""
    top, labels, gaps = winner(logits.float())
    others = gaps.exp().scatter_(1, labels.unsqueeze(1), 0.0)
    # top - top is 0, or NaN where the largest logit is NaN or infinite: such a pixel says nothing.
    rest = others.sum(dim=1) + (top - top).squeeze(1)
    return labels, gaps, others, rest


def nan_to_never(score: Tensor) -> Tensor:
    """Replace NaN by -inf, a score that is never counted and reaches no threshold."""
    return torch.where(score.isnan(), -torch.inf, score)
