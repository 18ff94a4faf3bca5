"""Launch the kernels on maps and vectors: one function for each operator, of the same name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selftrain_seg.ops.adapting import CERTAIN
from selftrain_seg.ops.ranking import ROUNDING, RULES, TIE_SHARE
from selftrain_seg.ops.running import SEEN
from selftrain_seg.ops.triton import state as maps
from selftrain_seg.ops.triton._plan import GROUP_SIZE, bits, launch_one, power_of_2

_PIXELS = 1024  # per program
_COUNTED_PIXELS = 256  # per program that compares them with each other
_ODDS_BINS = (-2048.0, 256.0, 8192)  # log-odds from -8 to 24: first bin, bins per unit, number of bins


def decide(_: Any, labels: Tensor, confidence: Tensor, thresholds: Tensor, strict: bool, ignore_index: int) -> Any:
    """One launch."""
    decided, by_image = torch.empty_like(labels), thresholds.ndim == 2 and len(thresholds) > 1
    numbers = (thresholds.shape[-1] if by_image else 0, ignore_index)
    tensors = (confidence, thresholds.contiguous(), decided)
    _launch_on_maps(maps.decide_kernel, labels, tensors, numbers, STRICT=strict)
    return decided


def weigh(_: Any, labels: Tensor, confidence: Tensor, belief: Tensor, state: Tensor, *numbers: Any) -> Any:
    """One launch."""
    made = torch.empty_like(labels), torch.empty_like(confidence)
    _launch_on_maps(maps.weigh_kernel, labels, (confidence, belief, state, *made), numbers)
    return made


def follow(_: Any, running: Tensor, sums: Tensor, number: Tensor, momentum: float, variance: bool) -> None:
    """One launch, in place."""
    size = len(running)
    launch_one(
        maps.follow_kernel, 1, running, sums, number, bits(momentum), size,
        SIZE=power_of_2(size), VARIANCE=variance,
    )  # fmt: skip


def discount(_: Any, peaks: Tensor, running: Tensor, seen: Tensor, sums: Tensor | None, *numbers: float) -> Any:
    """One launch, in place except for the thresholds."""
    upper, lower, beta, momentum = numbers
    bars, num_classes = torch.empty_like(peaks), peaks.shape[1]
    launch_one(
        maps.discount_kernel, 1, peaks, running, seen, sums, bars,
        len(peaks), float(upper), float(lower), bits(beta), bits(momentum),
        C=num_classes, SIZE=power_of_2(num_classes), SEEN=SEEN,
    )  # fmt: skip
    return bars


def adapt(_: Any, labels: Tensor, confidence: Tensor, thresholds: Tensor, *rest: Any) -> Any:
    """Three launches."""
    *numbers, by_image = rest
    steps, num_classes, (first, per_unit, bins) = len(labels) if by_image else 1, len(thresholds), _ODDS_BINS
    history = torch.empty((steps + 1, num_classes), dtype=torch.float64, device=labels.device)
    counts = torch.zeros((steps, num_classes, bins), dtype=torch.int32, device=labels.device)
    _launch_on_maps(
        maps.spread_kernel, labels, (confidence, counts),
        (first, per_unit, num_classes * bins if by_image else 0), C=num_classes, BINS=bins, GROUP=GROUP_SIZE,
        pixels=_COUNTED_PIXELS,
    )  # fmt: skip
    launch_one(
        maps.adapt_kernel, num_classes, counts, thresholds, history, steps, first, per_unit,
        *map(bits, numbers), C=num_classes, BINS=bins, CERTAIN=CERTAIN, num_warps=8,
    )  # fmt: skip
    return history


def tabulate(_: Any, predicted: Tensor, labels: Tensor, confidence: Tensor, target: Any, *numbers: int) -> Any:
    """Two launches."""
    num_classes, ignore_index = numbers
    given = labels.contiguous(), predicted.contiguous(), confidence.contiguous()
    programs = len(labels) * -(-labels[:1].numel() // _PIXELS)
    partial = torch.empty((programs, 5, num_classes), dtype=torch.float64, device=labels.device)
    tensors = (*given[1:], None if target is None else target.contiguous(), partial)
    _launch_on_maps(maps.table_kernel, given[0], tensors, (ignore_index,), C=num_classes)
    return partial.sum(0)


def ranked(_: Any, counts: Tensor, share: Tensor, rule: str, low: float, bin_width: float) -> Any:
    """One launch."""
    (rows, bins), (by_row, level) = counts.shape, (share.contiguous(), 0) if share.ndim else (None, bits(float(share)))
    found = torch.empty((2, rows), dtype=torch.float64, device=counts.device)
    launch_one(
        maps.rank_kernel, rows, counts.contiguous(), by_row, found, rows,
        level, bits(low), bits(bin_width), bits(ROUNDING),
        BINS=bins, BLOCK=1024, RULE=RULES.index(rule), TIE_SHARE=TIE_SHARE,
    )  # fmt: skip
    return found


def _launch_on_maps(
    kernel: Any,
    labels: Tensor,
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[float, ...],
    *,
    pixels: int = _PIXELS,
    **options: Any,
) -> None:
    """Call a kernel with (B, H, W) maps, other tensors, the number of pixels per image, then numbers."""
    size = labels[:1].numel()
    launch_one(kernel, len(labels) * -(-size // pixels), labels, *tensors, size, *numbers, PIXELS=pixels, **options)
