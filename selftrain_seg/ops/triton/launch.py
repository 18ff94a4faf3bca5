"""Launch the kernels: one function for each operator, of the same name.

Each takes the plain implementation of the operator first and calls it for unsupported inputs: float64 logits, spatial
priors, counts of every class, and bins that are not exact in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selftrain_seg.ops._thresholds import LARGE, SLACK
from selftrain_seg.ops.counts import dyadic
from selftrain_seg.ops.observing import LEAST, sum_sizes
from selftrain_seg.ops.triton import fairness, mutual, negative, reading
from selftrain_seg.ops.triton import loss as losses
from selftrain_seg.ops.triton.launch_state import (  # noqa: F401, where the dispatcher looks for them
    GROUP_SIZE,
    adapt,
    bits,
    decide,
    discount,
    follow,
    power_of_2,
    ranked,
    tabulate,
    weigh,
)

_PIXELS = 256  # per program
_FEW_PIXELS = 128  # per program that sums over its pixels class by class, in one warp
_OBSERVED_PIXELS = 64  # per program that also keeps labels
_UNROLLED, _CHUNK = 64, 8  # up to 64 classes are one chunk; more are processed in chunks of 8
_MANY = 2048  # number of programs whose sums are added up at once
_LANES = 4  # threads that share a pixel whose classes are adjacent in memory
_REGULARISERS = ("", "kld", "entropy", "square", "reverse")
_DIVISORS = ("sum", "labelled", "all", "weights")

Plain = Callable[..., Any]


def read(plain: Plain, logits: Tensor, *rest: Any) -> Any:
    """One launch."""
    valid, prior, *log = rest
    if not _fits(logits) or prior is not None:
        return plain(logits, *rest)
    maps = _map(logits, torch.int64), _map(logits, torch.float32)
    _launch(reading.read_kernel, logits, (_contiguous(valid), *maps), _plan(logits), LOG=any(log))
    return maps


def observe(plain: Plain, logits: Tensor, *rest: Any) -> Any:
    """One launch, plus one for the sums and one for the peaks."""
    valid, relative_to, which, floor = rest
    if not _fits(logits):
        return plain(logits, *rest)
    maps, num_classes = (_map(logits, torch.int64), _map(logits, torch.float32)), logits.shape[1]
    size, few = sum(sum_sizes(logits, which)), any(which)
    plan = _plan(logits, pixels=_OBSERVED_PIXELS if few else _PIXELS, share=False)
    partial = _new(logits, (plan.programs, size), torch.float64) if size else None
    peaks = _new(logits, (plan.programs, num_classes)) if which[3] else None
    _launch(
        reading.observe_kernel, logits, (_contiguous(valid), _contiguous(relative_to), *maps, partial, peaks), plan,
        (floor,), LEAST=LEAST, SIZE=size, **dict(zip(("MOMENTS", "PROBS", "COUNTS"), which, strict=False)),
        num_warps=1 if few else 4,
    )  # fmt: skip
    sums = _new(logits, (0,), torch.float64) if partial is None else partial.sum(0)
    if peaks is None:
        peaks = _new(logits, (0, 0))
    elif plan.programs:
        peaks = peaks.view(len(logits), -1, num_classes).amax(1)
    else:
        peaks = torch.zeros(logits.shape[:2], device=logits.device)
    return *maps, sums, peaks


def count(plain: Plain, logits: Tensor, counts: Tensor, *rest: Any) -> Any:
    """One launch, in place."""
    valid, prior, _, every_class, low, bin_width = rest
    simple = counts.is_contiguous() and dyadic(low, bin_width)  # otherwise float32 is not exact
    if not _fits(logits) or prior is not None or every_class or not simple:
        return plain(logits, counts, *rest)
    tensors, plan = (_contiguous(valid), counts), _plan(logits, share=False)
    numbers, bins = (low / bin_width, 1.0 / bin_width), counts.shape[1]
    _launch(reading.count_kernel, logits, tensors, plan, numbers, BINS=bins, GROUP=GROUP_SIZE)
    return None


def select(plain: Plain, logits: Tensor, thresholds: Tensor, *rest: Any) -> Any:
    """One launch."""
    reweighted, valid, prior, ignore_index = rest
    if not _fits(logits) or prior is not None:
        return plain(logits, thresholds, *rest)
    maps, (by_class, level) = _selected(logits), _thresholds(thresholds)
    tensors, numbers = (_contiguous(valid), by_class, *maps), (level, ignore_index)
    _launch(
        reading.select_kernel, logits, tensors, _plan(logits), numbers, SLACK=SLACK, LARGE=LARGE, REWEIGHTED=reweighted
    )
    return maps


def soften(plain: Plain, logits: Tensor, thresholds: Tensor, alpha: Tensor, *rest: Any) -> Any:
    """One launch."""
    valid, prior, ignore_index = rest
    if not _fits(logits) or prior is not None:
        return plain(logits, thresholds, alpha, *rest)
    maps, soft = _selected(logits), torch.empty_like(logits, dtype=torch.float32)
    by_class, level = _thresholds(thresholds)
    there, sharpness = (alpha, 0.0) if alpha.ndim else (None, 1.0 / float(alpha))
    tensors, numbers = (_contiguous(valid), by_class, there, *maps, soft), (level, sharpness, ignore_index)
    _launch(reading.soft_kernel, logits, tensors, _plan(logits, soft), numbers, SLACK=SLACK, LARGE=LARGE)
    return *maps, soft


def weighted_loss(_: Plain, logits: Tensor, labels: Tensor, *rest: Any) -> Any:
    """Two launches: the pixels, and what they add up to."""
    *weights, divisor, numbers, regulariser, which, normalize, ignore_index = rest
    soft, target, plan = _target(logits, labels)
    options = _options(regulariser, which, soft)
    norm, mapped = _new(logits, (2, logits.shape[0], *logits.shape[2:])), normalize == "none"
    kept = _map(logits, torch.float32) if options["REST"] or options["REGULARISER"] in (2, 3) else None
    loss = _map(logits, torch.float32) if mapped else None
    tensors, steps = _weights(weights)
    has = (options["REGULARISER"] != 0, tensors[1] is not None, options["REST"], tensors[2] is not None)
    partial = None if mapped else _new(logits, (2 + sum(has), plan.programs))
    factors = [float(number) for number in numbers]  # on the host
    maps = (target, *tensors, loss, norm[0], norm[1], kept, partial)
    _launch(losses.forward_kernel, logits, maps, plan, (ignore_index, *steps, *factors), **options)
    total, scales = _finish(logits, partial, divisor, factors, normalize, has)
    return total if loss is None else loss, scales, norm, _new(logits, (0,)) if kept is None else kept


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
    loss, scales = _new(logits, (0,) if mapped else ()), _new(logits, (3,))
    with torch.cuda.device(logits.get_device()):
        losses.finish_kernel[(1,)](
            partial, None if mapped else divisor, None if mapped else loss, scales,
            0 if partial is None else partial.shape[1], logits.shape[0] * logits.shape[2:].numel(), *factors,
            NORMALIZE=0 if mapped else _DIVISORS.index(normalize),
            REGULARISED=has[0], IMAGES=has[1], REST=has[2], CLASSES=has[3],
            MANY=_MANY, num_warps=8, enable_fp_fusion=False,
        )  # fmt: skip
    return loss, scales


def weighted_loss_backward(_: Plain, grad: Tensor, logits: Tensor, labels: Tensor, *rest: Any) -> Any:
    """One launch."""
    *weights, scales, norm, kept, regulariser, which, ignore_index = rest
    result = torch.empty_like(logits)
    soft, target, plan = _target(logits, labels, result)
    tensors, steps = _weights(weights)
    maps = (target, *tensors, scales, norm[0], norm[1], kept if kept.numel() else None, result)
    grad, grad_p = _upstream(grad)
    options = _options(regulariser, which, soft)
    _launch(losses.backward_kernel, logits, maps, plan, (ignore_index, *steps, grad_p), before=(grad,), **options)
    return result


def mutual_loss(plain: Plain, logits: Tensor, labels: Tensor, confidence: Tensor, *rest: Any) -> Any:
    """Two launches: the pixels, and what they add up to."""
    is_pseudo, gammas, flip, normalize, ignore_index = rest
    if not _fits(logits):
        return plain(logits, labels, confidence, *rest)
    norm, mapped = _new(logits, (2, logits.shape[0], *logits.shape[2:])), normalize == "none"
    plan, loss = _plan(logits, wide=True), _map(logits, torch.float32) if mapped else None
    chosen, weight = _map(logits, torch.int64), _map(logits, torch.float32)
    partial = None if mapped else _new(logits, (2, plan.programs))
    inputs = (labels.contiguous(), confidence.contiguous(), _contiguous(is_pseudo))
    numbers = (ignore_index, *(float(gamma) for gamma in gammas))  # on the host
    maps = (*inputs, chosen, weight, loss, norm[0], norm[1], partial)
    _launch(mutual.mutual_forward_kernel, logits, maps, plan, numbers, FLIP=flip, SLACK=SLACK)
    total, scales = _finish(logits, partial, None, (1.0, 0.0, 0.0), normalize)
    return total if loss is None else loss, scales, norm, chosen, weight


def negative_loss(plain: Plain, logits: Tensor, probs: Tensor, *rest: Any) -> Any:
    """Two launches: the pixels, and what they add up to."""
    weight, number, reduction = rest
    if not _fits(logits) or not _fits(probs):
        return plain(logits, probs, *rest)
    factor, mapped = float(number), reduction == "none"  # on the host
    plan, loss = _plan(logits, probs, wide=True), _map(logits, torch.float32) if mapped else None
    partial = None if mapped else _new(logits, (2, plan.programs))
    tensors = (probs, _contiguous(weight), loss, partial)
    _launch(negative.negative_forward_kernel, logits, tensors, plan, (_chance(probs), factor))
    divide = "labelled" if reduction == "mean" else "sum"
    total, scales = _finish(logits, partial, None, (factor, 0.0, 0.0), divide)
    return total if loss is None else loss, scales[0]


def negative_loss_backward(plain: Plain, grad: Tensor, logits: Tensor, probs: Tensor, *rest: Any) -> Any:
    """One launch."""
    weight, scale = rest
    if not _fits(logits) or not _fits(probs):
        return plain(grad, logits, probs, *rest)
    result, (grad, grad_p) = torch.empty_like(logits), _upstream(grad)
    plan = _plan(logits, probs, result, wide=True)
    tensors = (probs, _contiguous(weight), scale, result)
    _launch(negative.negative_backward_kernel, logits, tensors, plan, (_chance(probs), grad_p), before=(grad,))
    return result


def fairness_loss(plain: Plain, logits: Tensor, *rest: Any) -> Any:
    """Three launches: the pixels, their sums, and the loss."""
    running_probs, running_histogram, mask, factor = rest
    if not _fits(logits):
        return plain(logits, *rest)
    num_classes, norm = logits.shape[1], _map(logits, torch.float32)
    plan = _plan(logits, pixels=_FEW_PIXELS)
    partial = _new(logits, (plan.programs, 2 * num_classes))
    tensors = (_contiguous(mask), norm, partial)
    _launch(fairness.fairness_forward_kernel, logits, tensors, plan, num_warps=1)
    loss, slope = _new(logits, ()), _new(logits, (num_classes,))
    with torch.cuda.device(logits.get_device()):
        fairness.fairness_finish_kernel[(1,)](
            partial.sum(0, dtype=torch.float64), running_probs.contiguous(), running_histogram.contiguous(),
            loss, slope, float(factor),  # on the host
            C=num_classes, MANY=power_of_2(num_classes), num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return loss, slope, norm


def fairness_loss_backward(plain: Plain, grad: Tensor, logits: Tensor, *rest: Any) -> Any:
    """One launch."""
    mask, slope, norm = rest
    if not _fits(logits):
        return plain(grad, logits, *rest)
    result = torch.empty_like(logits)
    tensors, plan = (_contiguous(mask), slope, norm, result), _plan(logits, result, wide=True)
    _launch(fairness.fairness_backward_kernel, logits, tensors, plan, before=(grad,))
    return result


def _chance(probs: Tensor) -> float:
    """1/C rounded to the dtype of the labels, in which torch compares."""
    return float(torch.tensor(1 / probs.shape[1], dtype=probs.dtype, device="cpu"))


def _upstream(grad: Tensor) -> tuple[Tensor, int]:
    """A gradient for the kernels, and its step between pixels: 0 for the single value of a sum."""
    same = grad.ndim == 0 or not any(grad.stride())
    return grad if same else grad.contiguous(), int(not same)


def _thresholds(thresholds: Tensor) -> tuple[Tensor | None, int]:
    """Thresholds for a kernel: (C,) in memory, or the bits of a number on the host."""
    return (thresholds.contiguous(), 0) if thresholds.ndim else (None, bits(float(thresholds)))


def _fits(logits: Tensor) -> bool:
    return logits.dtype != torch.float64


def _new(logits: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=logits.device)


def _map(logits: Tensor, dtype: torch.dtype) -> Tensor:
    return _new(logits, (logits.shape[0], *logits.shape[2:]), dtype)


def _selected(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Empty maps for labels, predicted and confidence."""
    return _map(logits, torch.int64), _map(logits, torch.int64), _map(logits, torch.float32)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _target(logits: Tensor, target: Tensor, *strided: Tensor) -> tuple[bool, Tensor, _Plan]:
    """Whether labels are soft, the labels for the kernel, and the plan, which includes the layout of soft labels."""
    if target.ndim == 4:
        return True, target, _plan(logits, target, *strided, wide=True)
    return False, target.contiguous(), _plan(logits, logits, *strided, wide=True)


def _options(regulariser: str, which: Sequence[bool], soft: bool) -> dict[str, Any]:
    kind = _REGULARISERS.index(regulariser) if which[1] else 0
    return {"SOFT": soft, "REGULARISER": kind, "REST": which[2]}


def _weights(weights: Sequence[Tensor | None]) -> tuple[tuple[Tensor | None, ...], tuple[int, int]]:
    """Weights of pixels, images and classes, and γ with its strides between images and pixels."""
    exponent = weights[-1]
    steps = (0, 1) if exponent is not None and exponent.ndim == 3 else (1, 0)
    return tuple(_contiguous(weight) for weight in weights), steps


class _Plan(NamedTuple):
    """Division of a batch into programs, and the layout of its tensors."""

    programs: int
    pixels: int  # per program, all of one row
    lanes: int  # threads that share a pixel
    layout: tuple[int, ...]  # height, width, and for each tensor strides of batch, class, height, width


def _plan(logits: Tensor, *strided: Tensor, pixels: int = _PIXELS, share: bool = True, wide: bool = False) -> _Plan:
    """Cut a batch.

    Args:
        logits: (B, C, H, W).
        strided: other tensors (B, C, H, W) that the kernel reads or writes.
        pixels: number of pixels per program.
        share: whether lanes may share a pixel.
        wide: whether a program may take twice the pixels if they have half the bytes.
    """
    batch, num_classes, height, width = logits.shape
    strides = [tensor.stride() for tensor in (logits, *strided)]
    if width == 1:
        height, width, strides = 1, height, [(b, c, 0, h) for b, c, h, _ in strides]
    elif height == 1 or all(h == width * w for _, _, h, w in strides):  # contiguous rows are one long row
        height, width = 1, height * width
    side_by_side = share and strides[0][1] == 1 and strides[0][3] != 1
    lanes = min(_LANES, 1 << (num_classes.bit_length() - 1)) if side_by_side else 1
    if lanes > 1:
        pixels = pixels // lanes
    elif wide and strides[0][3] == 1 and _CHUNK <= num_classes <= _UNROLLED:
        pixels *= 4 // logits.element_size()
    programs = batch * height * -(-width // pixels)
    return _Plan(programs, pixels, lanes, (height, width, *(s for each in strides for s in each)))


def _launch(
    kernel: Any,
    logits: Tensor,
    tensors: tuple[Tensor | None, ...],
    plan: _Plan,
    numbers: tuple[float, ...] = (),
    *,
    before: tuple[Tensor, ...] = (),
    **options: Any,
) -> None:
    """Call a kernel with tensors, the logits first unless others come before, then the layout, then numbers."""
    if plan.programs == 0:
        return
    num_classes = logits.shape[1]
    chunk = -(-num_classes // plan.lanes) * plan.lanes if num_classes <= _UNROLLED else _CHUNK
    if "LANES" in kernel.arg_names:
        options |= {"LANES": plan.lanes}
    with torch.cuda.device(logits.get_device()):  # -1, the CPU, changes nothing
        kernel[(plan.programs,)](
            *before, logits, *tensors, *plan.layout, *numbers,
            C=num_classes, PIXELS=plan.pixels, CHUNK=chunk, **options, enable_fp_fusion=False,
        )  # fmt: skip
