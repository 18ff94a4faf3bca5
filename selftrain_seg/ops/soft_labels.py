"""Soft labels from probabilities re-weighted by thresholds and sharpened."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from selftrain_seg.ops._blocks import blocks, cut, new_map, on_cpu
from selftrain_seg.ops._library import operator
from selftrain_seg.ops._thresholds import log_gain, there
from selftrain_seg.ops._winner import exponential, winner
from selftrain_seg.ops.reading import pixel_scores, prior_of
from selftrain_seg.ops.selection import weighted_confidence


def soften(
    logits: Tensor,
    thresholds: Tensor,
    alpha: Tensor,
    *,
    valid: Tensor | None = None,
    prior: Tensor | None = None,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return labels, predicted classes and confidences as ``select``, and soft labels (B, C, H, W) float32.

    ``y_c ∝ (p_c / kc_c)^(1/alpha)`` where ``logsumexp_c(log(p_c / kc_c) / alpha) > 0``, else 0; ``alpha`` is (1,).
    ``thresholds`` and ``alpha`` may be () on the host, which avoids a copy to the device.
    """
    prior = None if prior is None else prior.detach()
    found: tuple[Tensor, Tensor, Tensor, Tensor] = _soften(
        logits.detach(), thresholds.detach(), alpha.detach(), valid, prior, ignore_index
    )
    return found


def _plain(
    logits: Tensor, thresholds: Tensor, alpha: Tensor, valid: Tensor | None, prior: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = _fake(logits, thresholds, alpha, valid, prior, ignore_index)
    labels, predicted, confidence, soft = outputs
    peaks, maps = prior_of(prior, logits)
    sharpness = there(alpha, logits).double().reciprocal()
    thresholds = there(thresholds, logits).expand(logits.shape[1])
    added = rearrange((log_gain(thresholds, peaks).double() * sharpness).float(), "c -> c 1 1")
    sharpness = sharpness.float()
    for block in blocks(logits):
        part = pixel_scores(logits[block[0], :, block[1]], cut(valid, block), cut(maps, block), peaks)
        value, best, gaps = winner(torch.addcmul(added, part.gaps, sharpness))
        powers = exponential(gaps, out=gaps)
        # logsumexp as max + log1p(others): at a saturated pixel, others of 1e-30 still decide.
        others = powers.clone().scatter_(1, best.unsqueeze(1), 0.0).sum(dim=1)
        keep = value.squeeze(1) + torch.log1p(others) > part.log_norm * sharpness
        scale = torch.where(keep, 1.0 / (1.0 + others), 0.0).unsqueeze(1)
        # 0 · NaN is NaN, so unusable pixels must be masked. On CPU, checking for them is cheaper than masking.
        if on_cpu(logits) and bool(value.isfinite().all()):
            torch.mul(powers, scale, out=soft[block[0], :, block[1]])
        else:
            soft[block[0], :, block[1]] = torch.where(keep.unsqueeze(1), powers * scale, 0.0)
        labels[block] = torch.where(keep, best, ignore_index)
        predicted[block], confidence[block] = part.labels, weighted_confidence(part, peaks)
    return outputs


def _fake(logits: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    soft = torch.empty_like(logits, dtype=torch.float32)
    return new_map(logits, torch.int64), new_map(logits, torch.int64), new_map(logits, torch.float32), soft


_soften = operator(
    "soften(Tensor logits, Tensor thresholds, Tensor alpha, Tensor? valid, Tensor? prior, int ignore_index)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _plain,
    _fake,
    kernel="launch",
    reads_host=True,
)
