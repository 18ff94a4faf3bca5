"""Convert logits to scores, which thresholds, selectors and statistics share.

The *score* of a pixel is the log-odds of the winning class, ``o = -log s`` with ``s = Σ_{c≠ŷ} exp(z_c - z_ŷ)``. Pixels
are ranked by it, and thresholds are compared with it. With a prior, pixels are ranked by ``p_c q_c``; the score is then
the log-odds of ``p_c q_c / Q_c`` with Q_c the peak of the class's prior. This ratio is at most 1, has the same order,
and still distinguishes saturated pixels where q is at its peak. A score of NaN marks an unusable pixel: a logit is NaN,
the largest is infinite, or ``valid`` is False. Such a pixel is never counted and, as comparisons with NaN are false,
never selected.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from selftrain_seg.ops._blocks import fill, new_map
from selftrain_seg.ops._library import operator
from selftrain_seg.ops._winner import exponential, winner


class Reading(NamedTuple):
    """Label and score of every pixel, without gradient."""

    labels: Tensor  # (B, H, W) int64
    score: Tensor  # (B, H, W) float32, NaN at unusable pixels


def confidence_of(score: Tensor) -> Tensor:
    """Convert scores without a prior to ``max_c p_c``: float32, 0 at unusable pixels."""
    return torch.sigmoid(score).nan_to_num_(nan=0.0)


def usable(score: Tensor) -> Tensor:
    """Which pixels have a score: bool."""
    return ~score.isnan()


def read(logits: Tensor, *, valid: Tensor | None = None, prior: Tensor | None = None) -> Reading:
    """Read a checked batch of logits (B, C, H, W) once."""
    return Reading(*_read(logits.detach(), valid, None if prior is None else prior.detach()))


def read_log_confidence(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Labels, and ``log max_c p_c`` as float32; NaN at unusable pixels."""
    labels, found = _read(logits.detach(), None, None, True)
    return labels, found


class Scores(NamedTuple):
    """Winning class, score and intermediate values of the pixels of a block."""

    labels: Tensor  # (b, h, w) int64
    score: Tensor  # (b, h, w) float32, NaN at unusable pixels
    gaps: Tensor  # (b, C, h, w) float32: z_c - max z, plus log(q_c / Q_c) under a prior; never positive
    log_norm: Tensor  # (b, h, w) float32: log1p(s), so that log p_c = (z_c - max z) - log_norm; NaN if unusable
    others: Tensor  # (b, C, h, w) float32: exp(z_c - max z), but 0 for the largest z


def prior_peaks(prior: Tensor) -> Tensor:
    """(C,) float32: the largest value of each class's prior, Q."""
    return prior.flatten(1).amax(dim=1).float() if prior[0].numel() else prior.new_ones(len(prior)).float()


def prior_of(prior: Tensor | None, logits: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The peaks of a prior and its maps for each image, if there is one."""
    return (None, None) if prior is None else (prior_peaks(prior), each_image(prior, logits))


def each_image(prior: Tensor, logits: Tensor) -> Tensor:
    """Expand the prior (C, H, W) to the batch, so that it can be cut into the same blocks as the logits."""
    return prior.unsqueeze(0).expand(len(logits), -1, -1, -1)


def pixel_scores(
    logits: Tensor, valid: Tensor | None = None, prior: Tensor | None = None, peaks: Tensor | None = None
) -> Scores:
    """Score a (b, C, h, w) block in float32."""
    labels, gaps, others, rest = _others(logits, valid)
    log_norm = torch.log1p(rest)
    if prior is None or peaks is None:
        return Scores(labels, rest.log_().neg_(), gaps, log_norm, others)
    prior = prior.float()
    _, winners, _ = winner(gaps + prior.log())
    at = winners.unsqueeze(1)
    mine = others.gather(1, at).squeeze(1)
    # Odds against the winner: s itself if it also has the largest z; otherwise computed without cancellation.
    against = torch.where(winners == labels, rest, (1.0 + rest - mine) / mine)
    q, peak = prior.gather(1, at).squeeze(1), peaks[winners]
    score = q.log() - torch.log((peak - q).clamp(min=0.0) + peak * against)
    relative = (prior.log() - rearrange(peaks.log(), "c -> c 1 1")).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    return Scores(winners, score, gaps + relative, log_norm, others)


def class_scores(logits: Tensor, valid: Tensor | None, prior: Tensor | None, peaks: Tensor | None) -> Tensor:
    """Score every class at every pixel of a block: (b, C, h, w) float32, on the same scale as ``pixel_scores``."""
    labels, gaps, others, rest = _others(logits, valid)
    rest = rest.unsqueeze(1)
    # odds of c = exp(gap_c) / Σ_{j≠c} exp(gap_j). For a class that did not win, the sum is at least 1 and the
    # difference is accurate; for the winner it is `rest`.
    against = (1.0 + rest - others).scatter_(1, labels.unsqueeze(1), rest)
    if prior is None or peaks is None:
        return gaps - against.log()
    # Multiply by exp(gap_c), so that a class with p = 0 has score -inf and not NaN.
    q, peak, mine = prior.float(), rearrange(peaks, "c -> c 1 1"), gaps.exp()
    return (q * mine).log() - torch.log((peak - q).clamp(min=0.0) * mine + peak * against)


def _others(logits: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Winner (b, h, w), z - max z and its exponentials except the winner's (b, C, h, w), and their sum (b, h, w)."""
    top, labels, gaps = winner(logits.float())
    others = exponential(gaps).scatter_(1, labels.unsqueeze(1), 0.0)
    # top - top is 0, or NaN if the largest logit is NaN or infinite, which marks an unusable pixel.
    rest = others.sum(dim=1) + (top - top).squeeze(1)
    return labels, gaps, others, rest if valid is None else rest.masked_fill_(~valid, torch.nan)


def _plain(logits: Tensor, valid: Tensor | None, prior: Tensor | None, log: bool = False) -> tuple[Tensor, ...]:
    outputs = _fake(logits)
    peaks, maps = prior_of(prior, logits)

    def found(z: Tensor, v: Tensor | None, q: Tensor | None) -> tuple[Tensor, Tensor]:
        labels, score = pixel_scores(z, v, q, peaks)[:2]
        return labels, functional.logsigmoid(score) if log else score

    fill(outputs, found, logits, valid, maps)
    return outputs


def _fake(logits: Tensor, *_: object) -> tuple[Tensor, ...]:
    return new_map(logits, torch.int64), new_map(logits, torch.float32)


_read = operator(
    "read(Tensor logits, Tensor? valid, Tensor? prior, bool log=False) -> (Tensor, Tensor)",
    _plain,
    _fake,
    kernel="launch",
)
