"""Cross entropy with the labels of another network, weighted by the agreement of the two networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selftrain_seg.ops import loss as _loss
from selftrain_seg.ops._blocks import new_map, wide
from selftrain_seg.ops._library import differentiable, in_transform, on_host, operator
from selftrain_seg.ops._thresholds import SLACK
from selftrain_seg.ops.plain import LOG_ZERO, as_map, plain_loss, read_labels
from selftrain_seg.ops.reading import confidence_of, read


def mutual_loss(
    logits: Tensor,
    labels: Tensor,
    confidence: Tensor,
    *,
    is_pseudo: Tensor | None,
    gamma_agree: float,
    gamma_disagree: float,
    flip: bool,
    normalize: str,
    ignore_index: int,
) -> Tensor:
    """Compute the loss of ``losses.dynamic_mutual_loss`` from checked arguments; differentiable in the logits.

    ``normalize`` is as in ``weighted_loss``. Returns () or, for "none", (B, H, W).
    """
    settings = (flip, normalize, ignore_index)
    labels, confidence, gammas = labels.detach(), confidence.detach(), (gamma_agree, gamma_disagree)
    if logits.dtype == torch.float64 or in_transform():
        chosen, weight, exponent = _decide(logits, labels, confidence, is_pseudo, gammas, flip, ignore_index)
        return _loss.weighted_loss(
            logits, chosen, pixel_weight=weight, exponent=exponent, normalize=normalize, ignore_index=ignore_index
        )
    loss: Tensor = _forward(logits, labels, confidence, is_pseudo, on_host(*gammas), *settings)[0]
    return loss


def _decide(
    logits: Tensor,
    labels: Tensor,
    confidence: Tensor,
    is_pseudo: Tensor | None,
    gammas: Sequence[float],
    flip: bool,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the labels to learn, their weights, and the exponents of p_y in the weights; (B, H, W) each."""
    on_agreement, otherwise = gammas
    own, labels = read(logits), labels.long()  # as uint8, the label 156 would equal an ignore_index of -100
    dtype = wide(logits)
    pseudo, agree = as_map(is_pseudo, labels), own.labels == labels
    pseudo = labels != ignore_index if pseudo is None else pseudo
    surer = pseudo & ~agree & (confidence_of(own.score) - confidence > SLACK)  # SLACK excludes rounding errors
    exponent = torch.where(pseudo & ~surer, torch.where(agree, on_agreement, otherwise), 0.0).to(dtype)
    if not flip:
        return labels, (~surer).to(dtype), exponent
    weight = torch.where(surer, (1 - confidence.to(dtype)).clamp(min=0) ** otherwise, 1.0)
    return torch.where(surer & (labels != ignore_index), own.labels, labels), weight, exponent


def _plain(
    logits: Tensor,
    labels: Tensor,
    confidence: Tensor,
    is_pseudo: Tensor | None,
    gammas: Tensor,
    flip: bool,
    normalize: str,
    ignore_index: int,
) -> tuple[Tensor, ...]:
    """The loss, its scales and norms as in ``weighted_loss``, and the labels and weights to pass to that loss."""
    powers = [float(gamma) for gamma in gammas]
    chosen, weight, exponent = _decide(logits, labels, confidence, is_pseudo, powers, flip, ignore_index)
    weights = (weight, None, None, exponent, None)
    loss, scales, norm, _ = _loss._forward(
        logits, chosen, *weights, on_host(1.0, 0.0, 0.0), "", [True, False, False], normalize, ignore_index
    )
    own = logits.gather(1, read_labels(chosen, ignore_index).at).squeeze(1).float()
    nll = norm[1] - (own - norm[0])
    chosen = chosen if flip else chosen.clone()  # they may be the caller's tensor
    return loss, scales, norm, chosen, weight * torch.exp(-exponent * nll.clamp(max=-LOG_ZERO))


def _fake(logits: Tensor, *others: Any) -> tuple[Tensor, ...]:
    one = new_map(logits, torch.float32)
    loss = torch.empty_like(one) if others[-2] == "none" else one.new_empty(())
    return loss, one.new_empty(3), one.new_empty(2, *one.shape), new_map(logits, torch.int64), one


_forward = operator(
    "mutual_loss(Tensor logits, Tensor labels, Tensor confidence, Tensor? is_pseudo, Tensor gammas, bool flip,"
    " str normalize, int ignore_index) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _plain,
    _fake,
    kernel="launch_loss",
    reads_host=True,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], *output[1:])
    ctx.settings = inputs[-2:]


def _differentiate(
    ctx: Any, grad: Tensor, logits: Tensor, scales: Tensor, norm: Tensor, chosen: Tensor, weight: Tensor
) -> Tensor:
    which, ignore_index = [True, False, False], ctx.settings[1]
    gradient: Tensor = _loss._backward(
        grad, logits, chosen, weight, None, None, None, scales, norm, norm.new_empty(0), "", which, ignore_index
    )
    return gradient


def _again(ctx: Any, logits: Tensor, _: Any, __: Any, chosen: Tensor, weight: Tensor) -> Tensor:
    return plain_loss(logits, chosen, weight, None, None, None, None, "", (1.0, 0.0, 0.0), *ctx.settings)


differentiable("mutual_loss", _save, _differentiate, _again)
