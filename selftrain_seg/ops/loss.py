"""Cross entropy and its regularisers, in one pass over the logits in each direction.

``L = a/D_a Σ w · nll + r/D_r Σ v · reg + e/D_e Σ u · H``: the first two sums are over labelled pixels, the third over
the others. For backward it saves the logits and two or three numbers per pixel, but no softmax or one-hot tensor.
``plain_loss`` serves the cases that the operator does not support: float64, gradients of weights, second derivatives
and ``torch.func.vmap``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selftrain_seg.ops._blocks import blocks, cut, new_map, on_cpu
from selftrain_seg.ops._library import differentiable, in_transform, on_host, operator
from selftrain_seg.ops._winner import exponential
from selftrain_seg.ops.plain import LOG_ZERO, Labels, Part, as_map, parts, plain_loss, read_labels, size


def weighted_loss(
    logits: Tensor,
    target: Tensor,
    *,
    regulariser: str = "",
    factors: Sequence[float] = (1.0, 0.0, 0.0),
    pixel_weight: Tensor | None = None,
    image_weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    exponent: Tensor | None = None,
    divisor: Tensor | None = None,
    normalize: str = "labelled",
    ignore_index: int = -1,
) -> Tensor:
    """Compute the loss of the module's docstring from checked arguments; differentiable in the logits.

    Args:
        logits: (B, C, H, W).
        target: (B, H, W) integers; or soft labels (B, C, H, W), whose pixels of zeros have no label.
        regulariser: on labelled pixels "kld": ``-(1/C) Σ_c log p_c``; "entropy": ``-Σ_c p_c log p_c``; "square":
            ``Σ_c p_c²``; "reverse": ``1 - p_y``, for hard labels; or none.
        factors: a, r and e. A term with factor 0 is left out, whatever the logits contain.
        pixel_weight: (B, H, W) factor of all terms of a pixel; ignored where the pixel has no term.
        image_weight: (B,) further factor of the regulariser; images with 0 do not count in D_r.
        class_weight: (C,) further factor of nll, by the class of the label; for hard labels.
        exponent: (B,) or (B, H, W) γ: nll is multiplied by ``p_y^γ``, without gradient; for hard labels.
        divisor: () divisor of all three sums, which replaces that of ``normalize`` except for "none".
        normalize: the divisor D. "labelled": the number of pixels of each sum; "all": the number of pixels of the
            batch; "weights": like "labelled", but D_a is the sum of class weights; "sum": 1; "none": return the map
            whose sum is the loss.
        ignore_index: label of the pixels without a class.

    Returns:
        (), or (B, H, W) for "none": float32, or float64 for float64 logits. A divisor of 0 counts as 1.
    """
    target = target.detach()
    class_weight = None if class_weight is None else class_weight.detach()
    tensors = (pixel_weight, image_weight, class_weight, exponent, divisor)
    learned = any(weight is not None and weight.requires_grad for weight in tensors)
    if logits.dtype == torch.float64 or learned or in_transform():
        return plain_loss(logits, target, *tensors, regulariser, factors, normalize, ignore_index)
    settings = (regulariser, [bool(factor) for factor in factors], normalize, ignore_index)
    loss: Tensor = _forward(logits, target, *tensors, on_host(*factors), *settings)[0]
    return loss


class _Values(NamedTuple):
    """Values of the three sums, each (b, h, w) or None if left out, and further maps of a block."""

    nll: Tensor
    regulariser: Tensor | None
    entropy: Tensor | None
    kept: Tensor | None  # saved for the gradient
    top: Tensor  # the largest logit
    log_total: Tensor  # log Σ exp(z - top), separate from ``top`` to keep precision


def _values(z: Tensor, labels: Labels, regulariser: str, which: Sequence[bool], work: Tensor) -> _Values:
    top = z.amax(1, keepdim=True)
    gaps, powers = work[:, : z.numel()].view(2, *z.shape).unbind()
    torch.sub(z, top, out=gaps)
    exponential(gaps, out=powers)
    total = powers.sum(1)
    log_total = total.log()
    if labels.soft is None or labels.mass is None:
        nll = log_total - gaps.gather(1, labels.at).squeeze(1)
    else:  # a class masked out by its logit has a gap of -inf, which must add 0 where its label is 0
        finite = gaps.clamp(min=torch.finfo(gaps.dtype).min)
        nll = labels.mass * log_total - finite.mul_(labels.soft).sum(1)
    value, entropy, kind = None, None, regulariser if which[1] else ""
    if kind == "kld":
        value = log_total - gaps.mean(1)
    elif kind == "reverse":
        value = torch.expm1(-nll).neg_()
    if which[2] or kind == "entropy":
        entropy = log_total - gaps.clamp_(min=LOG_ZERO).mul_(powers).sum(1) / total
    if kind == "entropy":
        value = entropy
    elif kind == "square":
        value = powers.square_().sum(1) / total.square()
    kept = entropy
    if kind == "square" and value is not None:
        kept = value if entropy is None else torch.where(labels.valid, value, entropy)
    return _Values(nll, value, entropy if which[2] else None, kept, top.squeeze(1), log_total)


def _forward_in_blocks(logits: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss and the tensors to save for backward. ``numbers`` (3,) are the factors, ``which`` of them are not 0.

    Returns:
        loss: () or (B, H, W).
        scales: (3,), factor of each sum in the loss.
        norm: (2, B, H, W), the largest logit, and the log of the sum of exp(z - largest).
        kept: (B, H, W), entropy or Σ p², if the gradient needs it.
    """
    loss, scales, norm, kept = _fake_forward(logits, target, *rest)
    pixel_weight, image_weight, class_weight, exponent, divisor, numbers, *settings = rest
    regulariser, which, normalize, ignore_index = settings
    maps = (pixel_weight, as_map(image_weight, norm[0]), as_map(exponent, norm[0]))
    factors = [float(number) for number in numbers]
    sums: list[list[Tensor]] = [[], [], []]
    counted: list[list[Tensor]] = [[], [], []]
    # All blocks share the buffers of their largest temporaries, as allocation is slow. The first block is the largest.
    most = next((cut(logits, block).numel() for block in blocks(logits)), 0)
    work = logits.new_empty(2, most, dtype=torch.float32)
    for block in blocks(logits):
        labels = read_labels(cut(target, block), ignore_index)
        pixel, image, gamma = (cut(weight, block) for weight in maps)
        found = _values(_workable(cut(logits, block)), labels, regulariser, which, work)
        norm[0][block], norm[1][block] = found.top, found.log_total
        if found.kept is not None:
            kept[block] = found.kept
        three = parts(labels, found.nll, pixel, image, class_weight, gamma)
        terms = [
            (each, factor, _term(values, part))
            for each, (factor, values, part) in enumerate(zip(factors, found, three, strict=False))
            if factor and values is not None
        ]
        if normalize == "none":
            loss[block] = sum(factor * values for _, factor, values in terms)
            continue
        for each, _, values in terms:
            sums[each].append(values.sum())
            counted[each].append(size(three[each], normalize, each))
    zero, one = norm.new_zeros((), dtype=torch.float64), norm.new_ones((), dtype=torch.float64)
    total = zero
    for each, factor in enumerate(factors):
        by = one if normalize in ("none", "sum") else torch.stack([zero, *counted[each]]).sum()
        by = by if divisor is None or normalize == "none" else divisor.double()
        scale = factor / torch.where(by == 0, one, by)
        scales[each] = scale
        total = total + scale * torch.stack([zero, *(value.double() for value in sums[each])]).sum()
    return loss if normalize == "none" else loss.copy_(total), scales, norm, kept


def _fake_forward(logits: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    regulariser, which, normalize, _ = others[-4:]
    one = new_map(logits, torch.float32)
    keeps = which[2] or (which[1] and regulariser in ("entropy", "square"))
    kept = torch.empty_like(one) if keeps else one.new_empty(0)
    return one if normalize == "none" else one.new_empty(()), one.new_empty(3), one.new_empty(2, *one.shape), kept


def _backward_in_blocks(grad: Tensor, logits: Tensor, target: Tensor, *rest: Any) -> Tensor:
    """Gradient of the logits.

    d nll = m p - y with m = Σ y, d kld = p - 1/C, d entropy = -p (log p + H), d square = 2 p (p - S) and
    d reverse = p_y d nll. They add up to ``p · slope - a · y - b/C``.
    """
    pixel_weight, image_weight, class_weight, exponent, scales, norm, kept, *settings = rest
    regulariser, which, ignore_index = settings
    result = torch.empty_like(logits)
    top, log_total = norm
    maps = (pixel_weight, as_map(image_weight, top), as_map(exponent, top))
    grad = grad.expand_as(top)
    for block in blocks(logits):
        labels = read_labels(cut(target, block), ignore_index)
        pixel, image, gamma = (cut(weight, block) for weight in maps)
        value = kept[block] if kept.numel() else None
        place = cut(result, block)
        in_place = logits.dtype == torch.float32 and logits.is_contiguous()
        z = _workable(cut(logits, block))
        gaps = torch.sub(z, top[block].unsqueeze(1), out=place if in_place else None)
        nll = top[block]  # a placeholder, except for these two
        if gamma is not None or regulariser == "reverse":
            nll = log_total[block] - gaps.gather(1, labels.at).squeeze(1)
        three = parts(labels, nll, pixel, image, class_weight, gamma)
        on_nll, on_reg, on_rest = (
            _term(grad[block] * scale, part) if there else None
            for there, scale, part in zip(which, scales, three, strict=True)
        )
        gradient = _gradient(gaps, log_total[block], labels, nll, value, regulariser, on_nll, on_reg, on_rest)
        # 0 · NaN is NaN, so unused logits must be masked. On CPU, checking for them is cheaper than masking.
        if not which[2] and not (on_cpu(logits) and bool(log_total[block].sum().isfinite())):
            gradient = torch.where(labels.valid.unsqueeze(1), gradient, 0)
        if gradient is not place:
            place.copy_(gradient)
    return result


def _gradient(
    gaps: Tensor,
    log_total: Tensor,
    labels: Labels,
    nll: Tensor,
    value: Tensor | None,
    regulariser: str,
    on_nll: Tensor | None,
    on_reg: Tensor | None,
    on_rest: Tensor | None,
) -> Tensor:
    """Gradient of a block, given those of nll, of the regulariser and of the entropy of other pixels, (b, h, w)."""
    if on_reg is not None and regulariser == "reverse":
        on_reg = on_reg * exponential(-nll)
        on_nll, on_reg = on_reg if on_nll is None else on_nll + on_reg, None
    slope = torch.zeros_like(nll) if on_nll is None else on_nll if labels.mass is None else on_nll * labels.mass
    if on_reg is not None and regulariser == "kld":
        slope = slope + on_reg
    slope = slope.unsqueeze(1)
    entropies = [g for g in (on_rest, on_reg if regulariser == "entropy" else None) if g is not None]
    if entropies and value is not None:
        log_p = gaps.sub_(log_total.unsqueeze(1))
        p = exponential(log_p)
        centred = log_p.clamp_(min=LOG_ZERO).add_(value.unsqueeze(1))
        slope = torch.addcmul(slope, centred, torch.stack(entropies).sum(0).unsqueeze(1), value=-1)
    else:
        p = exponential(gaps, less=log_total.unsqueeze(1), out=gaps)
    if on_reg is not None and regulariser == "square" and value is not None:
        slope = torch.addcmul(slope, p - value.unsqueeze(1), on_reg.unsqueeze(1), value=2)
    if on_reg is not None and regulariser == "kld":
        gradient = torch.addcmul(on_reg.unsqueeze(1) / -p.shape[1], p, slope, out=p)
    else:
        gradient = p.mul_(slope)
    if on_nll is not None and labels.soft is not None:
        gradient.addcmul_(on_nll.unsqueeze(1), labels.soft, value=-1)
    elif on_nll is not None:
        gradient.scatter_add_(1, labels.at, on_nll.unsqueeze(1).neg())
    return gradient


def _term(values: Tensor, part: Part) -> Tensor:
    """Values times weights; 0 outside the region, even for NaN."""
    for weight in part.weights:
        values = values if weight is None else values * weight.to(values.dtype)
    # where() is slow on the irregular masks of pseudo-labels; on the CPU, a check for NaN is faster.
    simple = on_cpu(values) and bool(values.sum().isfinite())
    return values * part.region if simple else torch.where(part.region, values, 0)


def _workable(z: Tensor) -> Tensor:
    """A block in float32; on a CPU contiguous per class, which is fastest."""
    return z.float().contiguous() if on_cpu(z) else z.float()


_WEIGHTS = "Tensor? pixel_weight, Tensor? image_weight, Tensor? class_weight, Tensor? exponent"
_forward = operator(
    f"weighted_loss(Tensor logits, Tensor target, {_WEIGHTS}, Tensor? divisor, Tensor numbers, str regulariser,"
    " bool[] which, str normalize, int ignore_index) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward_in_blocks,
    _fake_forward,
    kernel="launch_loss",
    reads_host=True,
)
_backward = operator(
    f"weighted_loss_backward(Tensor grad, Tensor logits, Tensor target, {_WEIGHTS}, Tensor scales, Tensor norm,"
    " Tensor kept, str regulariser, bool[] which, int ignore_index) -> Tensor",
    _backward_in_blocks,
    lambda grad, logits, *_: torch.empty_like(logits),
    kernel="launch_loss",
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:8], *output[1:])
    ctx.settings = inputs[8:]


def _differentiate(ctx: Any, grad: Tensor, *saved: Any) -> Tensor:
    regulariser, which, _, ignore_index = ctx.settings
    gradient: Tensor = _backward(grad, *saved[:6], *saved[8:], regulariser, which, ignore_index)
    return gradient


def _again(ctx: Any, *saved: Any) -> Tensor:
    regulariser, _, normalize, ignore_index = ctx.settings
    arguments = (*saved[:7], regulariser, [float(number) for number in saved[7]], normalize, ignore_index)
    return plain_loss(*arguments)


differentiable("weighted_loss", _save, _differentiate, _again)
