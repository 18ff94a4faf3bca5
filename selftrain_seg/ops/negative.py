"""Binary cross entropy against 0 for classes below chance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from selftrain_seg.ops._blocks import fill, new_map
from selftrain_seg.ops._library import differentiable, in_transform, operator


def negative_loss(logits: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    """``Σ_{c: t_c ≤ 1/C} log(1 + exp(z_c))`` of each pixel, and the number of such c, int64; both (B, H, W).

    Differentiable in the logits; float32, or float64 for float64 logits. Only the inputs are kept for it.
    """
    found: tuple[Tensor, Tensor] = (_values if in_transform() else _forward)(logits, probs.detach())
    return found


def _surely_not(probs: Tensor) -> Tensor:
    return probs <= 1 / probs.shape[1]


def _wide(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _values(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    mask = _surely_not(t)
    # -log sigmoid(-z) is softplus without the switch to the identity above 20.
    return torch.where(mask, -functional.logsigmoid(-z.to(_wide(z))), 0).sum(1), mask.sum(1)


def _gradient(z: Tensor, t: Tensor, grad: Tensor) -> Tensor:
    return torch.where(_surely_not(t), torch.sigmoid(z.to(_wide(z))) * grad.unsqueeze(1), 0)


def _forward_in_blocks(logits: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    outputs = _fake_forward(logits, probs)
    fill(outputs, _values, logits, probs)
    return outputs


def _fake_forward(logits: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    return new_map(logits, _wide(logits)), new_map(logits, torch.int64)


def _backward_in_blocks(grad: Tensor, logits: Tensor, probs: Tensor) -> Tensor:
    result = torch.empty_like(logits)
    fill((result,), lambda z, t, g: (_gradient(z, t, g),), logits, probs, grad)
    return result


_forward = operator("negative_loss(Tensor logits, Tensor probs) -> (Tensor, Tensor)", _forward_in_blocks, _fake_forward)
_backward = operator(
    "negative_loss_backward(Tensor grad, Tensor logits, Tensor probs) -> Tensor",
    _backward_in_blocks,
    lambda grad, logits, probs: torch.empty_like(logits),
)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, None]:
    logits, probs = ctx.saved_tensors
    if torch.is_grad_enabled():  # somebody wants to differentiate the gradient
        return _gradient(logits, probs, grad).to(logits.dtype), None
    return _backward(grad, logits, probs), None


differentiable("negative_loss", _save, _differentiate)
