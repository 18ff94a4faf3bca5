"""Loss of the batch's class distribution against a running one, in one pass over the logits in each direction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selftrain_seg.ops._blocks import blocks, cut, fill, new_map, wide
from selftrain_seg.ops._library import differentiable, in_transform, on_host, operator
from selftrain_seg.ops.counts import class_counts


def fairness_loss(
    logits: Tensor, running_probs: Tensor, running_histogram: Tensor, *, mask: Tensor | None, factor: float
) -> Tensor:
    """Compute the loss of ``losses.fairness_loss`` from checked arguments; differentiable in the logits.

    Saves the logits and two numbers per pixel for backward. Returns () float32, or float64 for float64 logits.
    """
    running_probs, running_histogram = running_probs.detach(), running_histogram.detach()
    if in_transform():
        return _plain(logits, running_probs, running_histogram, mask, factor)
    loss: Tensor = _forward(logits, running_probs, running_histogram, mask, on_host(factor))[0]
    return loss


def _sums(z: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Per class: the differentiable sum of the probabilities, and the number of predictions."""
    chosen = torch.ones_like(z[:, 0], dtype=torch.bool) if mask is None else mask
    kept = chosen.unsqueeze(1)
    # Set the logits of the other pixels to 0, not only their probabilities: 0 · NaN is NaN in backward.
    probs = torch.softmax(torch.where(kept, z, 0), 1, dtype=wide(z))
    # Count in integers, as float32 sums of ones stop at 2^24. The divisor of both means cancels in the ratio.
    counts = class_counts(probs.detach().argmax(1), chosen, z.shape[1])
    return torch.where(kept, probs, 0).sum((0, 2, 3)), counts


def _ratio(sums: Tensor, counts: Tensor) -> Tensor:
    return torch.where(counts > 0, sums / torch.where(counts > 0, counts, 1).to(sums.dtype), 0)


def _share(ratio: Tensor) -> Tensor:
    """Scale to a sum of 1; all zeros stay zeros."""
    whole = ratio.sum()
    return ratio / torch.where(whole > 0, whole, 1)


def _plain(
    logits: Tensor, running_probs: Tensor, running_histogram: Tensor, mask: Tensor | None, factor: float
) -> Tensor:
    total, counts = _sums(logits, mask)
    running = _share(_ratio(running_probs.to(total.dtype), running_histogram))
    seen = (counts > 0) & (running_histogram > 0)
    return factor * (running * torch.where(seen, _share(_ratio(total, counts)), 1).log()).sum()


def _forward_in_blocks(
    logits: Tensor, running_probs: Tensor, running_histogram: Tensor, mask: Tensor | None, factor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, its derivative with respect to each class's sum of probabilities (C,), and log Σ exp z (B, H, W)."""
    loss, slope, norm = _fake_forward(logits)
    nothing = logits.new_zeros(logits.shape[1], dtype=torch.float64)
    parts = [(nothing, nothing.long())]
    for block in blocks(logits):
        z = cut(logits, block)
        norm[block] = z.to(norm.dtype).logsumexp(1)
        parts.append(_sums(z, cut(mask, block)))
    sums = torch.stack([total.double() for total, _ in parts]).sum(0)
    counts = torch.stack([count for _, count in parts]).sum(0)
    ratio = _ratio(sums, counts)
    running = _share(_ratio(running_probs.double(), running_histogram)) * float(factor)
    seen = (counts > 0) & (running_histogram > 0)
    loss.copy_((running * torch.where(seen, _share(ratio), 1).log()).sum())
    known = torch.where(seen, running, 0)
    whole = ratio.sum()
    by_ratio = known / torch.where(ratio > 0, ratio, 1) - known.sum() / torch.where(whole > 0, whole, 1)
    slope.copy_(torch.where(counts > 0, by_ratio / counts.clamp(min=1), 0))
    return loss, slope, norm


def _fake_forward(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    dtype = wide(logits)
    return logits.new_empty((), dtype=dtype), logits.new_empty(logits.shape[1], dtype=dtype), new_map(logits, dtype)


def _backward_in_blocks(grad: Tensor, logits: Tensor, mask: Tensor | None, slope: Tensor, norm: Tensor) -> Tensor:
    """Gradient of the logits, ``p (g - Σ_c g_c p_c)`` at the pixels in the mask, g the slope."""
    weight = (grad * slope).view(-1, 1, 1)

    def gradient(z: Tensor, m: Tensor | None, log_total: Tensor) -> tuple[Tensor]:
        p = torch.exp(z.to(norm.dtype) - log_total.unsqueeze(1))
        found = p * (weight - (p * weight).sum(1, keepdim=True))
        return (found if m is None else torch.where(m.unsqueeze(1), found, 0),)

    result = torch.empty_like(logits)
    fill((result,), gradient, logits, mask, norm)
    return result


_forward = operator(
    "fairness_loss(Tensor logits, Tensor running_probs, Tensor running_histogram, Tensor? mask, Tensor factor)"
    " -> (Tensor, Tensor, Tensor)",
    _forward_in_blocks,
    _fake_forward,
    kernel="launch_loss",
    reads_host=True,
)
_backward = operator(
    "fairness_loss_backward(Tensor grad, Tensor logits, Tensor? mask, Tensor slope, Tensor norm) -> Tensor",
    _backward_in_blocks,
    lambda grad, logits, *_: torch.empty_like(logits),
    kernel="launch_loss",
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[1:])


differentiable(
    "fairness_loss",
    _save,
    lambda _, grad, logits, __, ___, mask, ____, slope, norm: _backward(grad, logits, mask, slope, norm),
    lambda _, logits, probs, histogram, mask, factor, *__: _plain(logits, probs, histogram, mask, float(factor)),
)
