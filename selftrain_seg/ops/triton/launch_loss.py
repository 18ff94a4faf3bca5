"""Launch the kernels of the losses: one function for each operator, of the same name; see ``launch``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selftrain_seg.ops._thresholds import SLACK
from selftrain_seg.ops.triton import fairness, mutual, negative, sums
from selftrain_seg.ops.triton import loss as losses
from selftrain_seg.ops.triton._plan import Plan, contiguous, fits, launch_one, new, new_map, plan_for, power_of_2, run

_FEW_PIXELS = 128  # per program that sums over its pixels class by class, in one warp
_MANY = 2048  # number of programs whose sums are added up at once
_REGULARISERS = ("", "kld", "entropy", "square", "reverse")
_DIVISORS = ("sum", "labelled", "all", "weights")


def weighted_loss(_: Any, logits: Tensor, labels: Tensor, *rest: Any) -> Any:
    """Two launches: the pixels, and what they add up to."""
    *weights, divisor, numbers, regulariser, which, normalize, ignore_index = rest
    soft, target, plan = _target(logits, labels)
    options = _options(regulariser, which, soft)
    norm, mapped = new(logits, (2, logits.shape[0], *logits.shape[2:])), normalize == "none"
    kept = new_map(logits, torch.float32) if options["REST"] or options["REGULARISER"] in (2, 3) else None
    loss = new_map(logits, torch.float32) if mapped else None
    tensors, steps = _weights(weights)
    has = (options["REGULARISER"] != 0, tensors[1] is not None, options["REST"], tensors[2] is not None)
    partial = None if mapped else new(logits, (2 + sum(has), plan.programs))
    factors = [float(number) for number in numbers]  # on the host
    maps = (target, *tensors, loss, norm[0], norm[1], kept, partial)
    run(losses.forward_kernel, logits, maps, plan, (ignore_index, *steps, *factors), **options)
    total, scales = _finish(logits, partial, divisor, factors, normalize, has)
    return total if loss is None else loss, scales, norm, new(logits, (0,)) if kept is None else kept


def _finish(
    logits: Tensor,
    partial: Tensor | None,
    divisor: Tensor | None,
    factors: Sequence[float],
    normalize: str,
    has: Sequence[bool] = (False, False, False, False),
) -> tuple[Tensor, Tensor]:
    """The loss from its partial sums, and the factor of each sum; one launch.

    ``has`` tells whether there are a regulariser, image weights, an entropy of other pixels, and class weights.
    """
    mapped = partial is None
    loss, scales = new(logits, (0,) if mapped else ()), new(logits, (3,))
    launch_one(
        sums.finish_kernel, 1, scales, partial, None if mapped else divisor, None if mapped else loss,
        0 if partial is None else partial.shape[1], logits.shape[0] * logits.shape[2:].numel(), *factors,
        NORMALIZE=0 if mapped else _DIVISORS.index(normalize),
        REGULARISED=has[0], IMAGES=has[1], REST=has[2], CLASSES=has[3], MANY=_MANY, num_warps=8,
    )  # fmt: skip
    return loss, scales


def weighted_loss_backward(_: Any, grad: Tensor, logits: Tensor, labels: Tensor, *rest: Any) -> Any:
    """One launch."""
    *weights, scales, norm, kept, regulariser, which, ignore_index = rest
    result = torch.empty_like(logits)
    soft, target, plan = _target(logits, labels, result)
    tensors, steps = _weights(weights)
    maps = (target, *tensors, scales, norm[0], norm[1], kept if kept.numel() else None, result)
    grad, grad_p = _upstream(grad)
    options = _options(regulariser, which, soft)
    run(losses.backward_kernel, logits, maps, plan, (ignore_index, *steps, grad_p), before=(grad,), **options)
    return result


def mutual_loss(plain: Any, logits: Tensor, labels: Tensor, confidence: Tensor, *rest: Any) -> Any:
    """Two launches: the pixels, and what they add up to."""
    is_pseudo, gammas, flip, normalize, ignore_index = rest
    if not fits(logits):
        return plain(logits, labels, confidence, *rest)
    norm, mapped = new(logits, (2, logits.shape[0], *logits.shape[2:])), normalize == "none"
    plan, loss = plan_for(logits, wide=True), new_map(logits, torch.float32) if mapped else None
    chosen, weight = new_map(logits, torch.int64), new_map(logits, torch.float32)
    partial = None if mapped else new(logits, (2, plan.programs))
    inputs = (labels.contiguous(), confidence.contiguous(), contiguous(is_pseudo))
    numbers = (ignore_index, *(float(gamma) for gamma in gammas))  # on the host
    maps = (*inputs, chosen, weight, loss, norm[0], norm[1], partial)
    run(mutual.mutual_forward_kernel, logits, maps, plan, numbers, FLIP=flip, SLACK=SLACK)
    total, scales = _finish(logits, partial, None, (1.0, 0.0, 0.0), normalize)
    return total if loss is None else loss, scales, norm, chosen, weight


def negative_loss(plain: Any, logits: Tensor, probs: Tensor, *rest: Any) -> Any:
    """Two launches: the pixels, and what they add up to."""
    weight, number, reduction = rest
    if not fits(logits) or not fits(probs):
        return plain(logits, probs, *rest)
    factor, mapped = float(number), reduction == "none"  # on the host
    plan, loss = plan_for(logits, probs, wide=True), new_map(logits, torch.float32) if mapped else None
    partial = None if mapped else new(logits, (2, plan.programs))
    tensors = (probs, contiguous(weight), loss, partial)
    run(negative.negative_forward_kernel, logits, tensors, plan, (_chance(probs), factor))
    divide = "labelled" if reduction == "mean" else "sum"
    total, scales = _finish(logits, partial, None, (factor, 0.0, 0.0), divide)
    return total if loss is None else loss, scales[0]


def negative_loss_backward(plain: Any, grad: Tensor, logits: Tensor, probs: Tensor, *rest: Any) -> Any:
    """One launch."""
    weight, scale = rest
    if not fits(logits) or not fits(probs):
        return plain(grad, logits, probs, *rest)
    result, (grad, grad_p) = torch.empty_like(logits), _upstream(grad)
    plan = plan_for(logits, probs, result, wide=True)
    tensors = (probs, contiguous(weight), scale, result)
    run(negative.negative_backward_kernel, logits, tensors, plan, (_chance(probs), grad_p), before=(grad,))
    return result


def fairness_loss(plain: Any, logits: Tensor, *rest: Any) -> Any:
    """Three launches: the pixels, their sums, and the loss."""
    running_probs, running_histogram, mask, factor = rest
    if not fits(logits):
        return plain(logits, *rest)
    num_classes, norm = logits.shape[1], new_map(logits, torch.float32)
    plan = plan_for(logits, pixels=_FEW_PIXELS)
    partial = new(logits, (plan.programs, 2 * num_classes))
    tensors = (contiguous(mask), norm, partial)
    run(fairness.fairness_forward_kernel, logits, tensors, plan, num_warps=1)
    loss, slope = new(logits, ()), new(logits, (num_classes,))
    launch_one(
        fairness.fairness_finish_kernel, 1, partial.sum(0, dtype=torch.float64),
        running_probs.contiguous(), running_histogram.contiguous(), loss, slope, float(factor),  # on the host
        C=num_classes, MANY=power_of_2(num_classes), num_warps=1,
    )  # fmt: skip
    return loss, slope, norm


def fairness_loss_backward(plain: Any, grad: Tensor, logits: Tensor, *rest: Any) -> Any:
    """One launch."""
    mask, slope, norm = rest
    if not fits(logits):
        return plain(grad, logits, *rest)
    result = torch.empty_like(logits)
    tensors, plan = (contiguous(mask), slope, norm, result), plan_for(logits, result, wide=True)
    run(fairness.fairness_backward_kernel, logits, tensors, plan, before=(grad,))
    return result


def _chance(probs: Tensor) -> float:
    """1/C rounded to the dtype of the labels, in which torch compares."""
    return float(torch.tensor(1 / probs.shape[1], dtype=probs.dtype, device="cpu"))


def _upstream(grad: Tensor) -> tuple[Tensor, int]:
    """A gradient for the kernels, and its step between pixels: 0 for the single value of a sum."""
    same = grad.ndim == 0 or not any(grad.stride())
    return grad if same else grad.contiguous(), int(not same)


def _target(logits: Tensor, target: Tensor, *strided: Tensor) -> tuple[bool, Tensor, Plan]:
    """Whether labels are soft, the labels for the kernel, and the plan, which includes the layout of soft labels."""
    if target.ndim == 4:
        return True, target, plan_for(logits, target, *strided, wide=True)
    return False, target.contiguous(), plan_for(logits, logits, *strided, wide=True)


def _options(regulariser: str, which: Sequence[bool], soft: bool) -> dict[str, Any]:
    kind = _REGULARISERS.index(regulariser) if which[1] else 0
    return {"SOFT": soft, "REGULARISER": kind, "REST": which[2]}


def _weights(weights: Sequence[Tensor | None]) -> tuple[tuple[Tensor | None, ...], tuple[int, int]]:
    """Weights of pixels, images and classes, and γ with its strides between images and pixels."""
    exponent = weights[-1]
    steps = (0, 1) if exponent is not None and exponent.ndim == 3 else (1, 0)
    return tuple(contiguous(weight) for weight in weights), steps
