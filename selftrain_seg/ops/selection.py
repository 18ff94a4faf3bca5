"""Hard labels for pixels that reach their threshold."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from selftrain_seg.ops._blocks import fill, new_map
from selftrain_seg.ops._library import operator
from selftrain_seg.ops._thresholds import log_gain, score_bar, there
from selftrain_seg.ops._winner import winner
from selftrain_seg.ops.reading import Scores, confidence_of, pixel_scores, prior_of


def select(
    logits: Tensor,
    thresholds: Tensor,
    *,
    reweighted: bool,
    valid: Tensor | None = None,
    prior: Tensor | None = None,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels (B, H, W) int64, predicted classes likewise, and confidences float32 of a checked batch.

    The label is the winner where its score reaches its threshold or, if ``reweighted``, the class that exceeds its own
    threshold most. ``thresholds`` are (C,), or () on the host, one for all classes.
    """
    prior = None if prior is None else prior.detach()
    found: tuple[Tensor, Tensor, Tensor] = _select(
        logits.detach(), thresholds.detach(), reweighted, valid, prior, ignore_index
    )
    return found


def weighted_confidence(part: Scores, peaks: Tensor | None) -> Tensor:
    """``max_c p_c``, or with a prior ``max_c p_c q_c``, of a block; 0 at unusable pixels."""
    confidence = confidence_of(part.score)
    return confidence if peaks is None else confidence * peaks[part.labels]


def _plain(
    logits: Tensor, thresholds: Tensor, reweighted: bool, valid: Tensor | None, prior: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _fake(logits, thresholds, reweighted, valid, prior, ignore_index)
    peaks, maps = prior_of(prior, logits)
    thresholds = there(thresholds, logits).expand(logits.shape[1])
    bar = (log_gain if reweighted else score_bar)(thresholds, peaks)
    gain = rearrange(bar, "c -> c 1 1")

    def block(z: Tensor, valid: Tensor | None, q: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        part = pixel_scores(z, valid, q, peaks)
        if reweighted:
            value, best, _ = winner(part.gaps + gain)
            keep = value.squeeze(1) >= part.log_norm
        else:
            best, keep = part.labels, part.score >= bar[part.labels]
        return torch.where(keep, best, ignore_index), part.labels, weighted_confidence(part, peaks)

    fill(outputs, block, logits, valid, maps)
    return outputs


def _fake(logits: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return new_map(logits, torch.int64), new_map(logits, torch.int64), new_map(logits, torch.float32)


_select = operator(
    "select(Tensor logits, Tensor thresholds, bool reweighted, Tensor? valid, Tensor? prior, int ignore_index)"
    " -> (Tensor, Tensor, Tensor)",
    _plain,
    _fake,
    kernel="launch",
    reads_host=True,
)
