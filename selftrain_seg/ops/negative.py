"""Binary cross entropy against 0 for classes below chance, in one pass over logits and labels in each direction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from selftrain_seg.ops._blocks import blocks, cut, fill, new_map, wide
from selftrain_seg.ops._library import differentiable, in_transform, on_host, operator


def negative_loss(
    logits: Tensor, probs: Tensor, *, pixel_weight: Tensor | None = None, factor: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """Compute ``factor/K Σ_pixels w Σ_{c: t_c ≤ 1/C} log(1 + exp(z_c))``, K the number of such (pixel, class) pairs.

    Differentiable in the logits. Saves only the inputs for backward.

    Args:
        logits: z (B, C, H, W).
        probs: t (B, C, H, W).
        pixel_weight: w (B, H, W); ignored where a pixel has no such class.
        factor: factor of the loss.
        reduction: "mean"; "sum", with K = 1; or "none" for the map whose sum that is.

    Returns:
        (), or (B, H, W) for "none": float32, or float64 for float64 logits. A K of 0 counts as 1.
    """
    probs = probs.detach()
    if in_transform() or (pixel_weight is not None and pixel_weight.requires_grad):
        return _plain(logits, probs, pixel_weight, factor, reduction)
    loss: Tensor = _forward(logits, probs, pixel_weight, on_host(factor), reduction)[0]
    return loss


def _surely_not(probs: Tensor) -> Tensor:
    return probs <= 1 / probs.shape[1]


def _values(z: Tensor, t: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """The weighted sum of each pixel, and the number of its classes."""
    mask = _surely_not(t)
    # -log sigmoid(-z) equals softplus, which torch replaces by the identity above 20.
    values, pairs = torch.where(mask, -functional.logsigmoid(-z.to(wide(z))), 0).sum(1), mask.sum(1)
    return values if weight is None else values * torch.where(pairs > 0, weight, 0).to(values.dtype), pairs


def _plain(logits: Tensor, probs: Tensor, weight: Tensor | None, factor: float, reduction: str) -> Tensor:
    logits = torch.where(_surely_not(probs), logits, 0)  # 0 · NaN is NaN in a gradient
    values, pairs = _values(logits, probs, weight)
    total = values if reduction == "none" else values.sum()
    return factor * (total / pairs.sum().clamp(min=1) if reduction == "mean" else total)


def _forward_in_blocks(
    logits: Tensor, probs: Tensor, weight: Tensor | None, factor: Tensor, reduction: str
) -> tuple[Tensor, Tensor]:
    """The loss, and the factor of a pixel's sum in it."""
    loss, scale = _fake_forward(logits, probs, weight, factor, reduction)
    scale.fill_(float(factor))
    if reduction == "none":
        fill((loss,), lambda z, t, w: (float(factor) * _values(z, t, w)[0],), logits, probs, weight)
        return loss, scale
    found = [_values(cut(logits, at), cut(probs, at), cut(weight, at)) for at in blocks(logits)]
    if reduction == "mean":
        scale /= sum((pairs.sum() for _, pairs in found), scale.new_zeros(())).clamp(min=1)
    return loss.copy_(scale * sum((values.sum() for values, _ in found), scale.new_zeros(()))), scale


def _fake_forward(logits: Tensor, probs: Tensor, weight: Tensor | None, *others: Any) -> tuple[Tensor, Tensor]:
    loss = new_map(logits, wide(logits)) if others[-1] == "none" else logits.new_empty((), dtype=wide(logits))
    return loss, logits.new_empty((), dtype=wide(logits))


def _backward_in_blocks(grad: Tensor, logits: Tensor, probs: Tensor, weight: Tensor | None, scale: Tensor) -> Tensor:
    def gradient(z: Tensor, t: Tensor, w: Tensor | None, g: Tensor) -> tuple[Tensor]:
        factor, mask = (g * scale).to(wide(z)), _surely_not(t)
        factor = factor if w is None else factor * torch.where(mask.any(1), w, 0).to(factor.dtype)
        return (torch.where(mask, torch.sigmoid(z.to(wide(z))) * factor.unsqueeze(1), 0),)

    result = torch.empty_like(logits)
    fill((result,), gradient, logits, probs, weight, grad.expand_as(logits[:, 0]))
    return result


_forward = operator(
    "negative_loss(Tensor logits, Tensor probs, Tensor? weight, Tensor factor, str reduction) -> (Tensor, Tensor)",
    _forward_in_blocks,
    _fake_forward,
    kernel="launch_loss",
    reads_host=True,
)
_backward = operator(
    "negative_loss_backward(Tensor grad, Tensor logits, Tensor probs, Tensor? weight, Tensor scale) -> Tensor",
    _backward_in_blocks,
    lambda grad, logits, *_: torch.empty_like(logits),
    kernel="launch_loss",
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], output[1])
    ctx.reduction = inputs[4]


differentiable(
    "negative_loss",
    _save,
    lambda _, grad, logits, probs, weight, __, scale: _backward(grad, logits, probs, weight, scale),
    lambda ctx, logits, probs, weight, factor, _: _plain(logits, probs, weight, float(factor), ctx.reduction),
)
