"""Launch the kernels that read logits: one function for each operator, of the same name.

Here and in the other files of this kind, each takes the plain implementation of the operator first and calls it for
unsupported inputs: float64 logits, spatial priors, counts of every class, and bins that are not exact in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selftrain_seg.ops._thresholds import LARGE, SLACK
from selftrain_seg.ops.counts import dyadic
from selftrain_seg.ops.observing import LEAST, sum_sizes
from selftrain_seg.ops.triton import reading
from selftrain_seg.ops.triton._plan import GROUP_SIZE, PIXELS, bits, contiguous, fits, new, new_map, plan_for, run

_OBSERVED_PIXELS = 64  # per program that also keeps labels


def read(plain: Any, logits: Tensor, *rest: Any) -> Any:
    """One launch."""
    valid, prior, *log = rest
    if not fits(logits) or prior is not None:
        return plain(logits, *rest)
    maps = new_map(logits, torch.int64), new_map(logits, torch.float32)
    run(reading.read_kernel, logits, (contiguous(valid), *maps), plan_for(logits), LOG=any(log))
    return maps


def observe(plain: Any, logits: Tensor, *rest: Any) -> Any:
    """One launch, plus one for the sums and one for the peaks."""
    valid, relative_to, which, floor = rest
    if not fits(logits):
        return plain(logits, *rest)
    maps, num_classes = (new_map(logits, torch.int64), new_map(logits, torch.float32)), logits.shape[1]
    size, few = sum(sum_sizes(logits, which)), any(which)
    plan = plan_for(logits, pixels=_OBSERVED_PIXELS if few else PIXELS, share=False)
    partial = new(logits, (plan.programs, size), torch.float64) if size else None
    peaks = new(logits, (plan.programs, num_classes)) if which[3] else None
    run(
        reading.observe_kernel, logits, (contiguous(valid), contiguous(relative_to), *maps, partial, peaks), plan,
        (floor,), LEAST=LEAST, SIZE=size, **dict(zip(("MOMENTS", "PROBS", "COUNTS"), which, strict=False)),
        num_warps=1 if few else 4,
    )  # fmt: skip
    sums = new(logits, (0,), torch.float64) if partial is None else partial.sum(0)
    if peaks is None:
        peaks = new(logits, (0, 0))
    elif plan.programs:
        peaks = peaks.view(len(logits), -1, num_classes).amax(1)
    else:
        peaks = torch.zeros(logits.shape[:2], device=logits.device)
    return *maps, sums, peaks


def count(plain: Any, logits: Tensor, counts: Tensor, *rest: Any) -> Any:
    """One launch, in place."""
    valid, prior, _, every_class, low, bin_width = rest
    simple = counts.is_contiguous() and dyadic(low, bin_width)  # otherwise float32 is not exact
    if not fits(logits) or prior is not None or every_class or not simple:
        return plain(logits, counts, *rest)
    tensors, plan = (contiguous(valid), counts), plan_for(logits, share=False)
    numbers, bins = (low / bin_width, 1.0 / bin_width), counts.shape[1]
    run(reading.count_kernel, logits, tensors, plan, numbers, BINS=bins, GROUP=GROUP_SIZE)
    return None


def select(plain: Any, logits: Tensor, thresholds: Tensor, *rest: Any) -> Any:
    """One launch."""
    reweighted, valid, prior, ignore_index = rest
    if not fits(logits) or prior is not None:
        return plain(logits, thresholds, *rest)
    maps, (by_class, level) = _selected(logits), _thresholds(thresholds)
    tensors, numbers, plan = (contiguous(valid), by_class, *maps), (level, ignore_index), plan_for(logits)
    run(reading.select_kernel, logits, tensors, plan, numbers, SLACK=SLACK, LARGE=LARGE, REWEIGHTED=reweighted)
    return maps


def soften(plain: Any, logits: Tensor, thresholds: Tensor, alpha: Tensor, *rest: Any) -> Any:
    """One launch."""
    valid, prior, ignore_index = rest
    if not fits(logits) or prior is not None:
        return plain(logits, thresholds, alpha, *rest)
    maps, soft = _selected(logits), torch.empty_like(logits, dtype=torch.float32)
    by_class, level = _thresholds(thresholds)
    there, sharpness = (alpha, 0.0) if alpha.ndim else (None, 1.0 / float(alpha))
    tensors, numbers = (contiguous(valid), by_class, there, *maps, soft), (level, sharpness, ignore_index)
    run(reading.soft_kernel, logits, tensors, plan_for(logits, soft), numbers, SLACK=SLACK, LARGE=LARGE)
    return *maps, soft


def _thresholds(thresholds: Tensor) -> tuple[Tensor | None, int]:
    """Thresholds for a kernel: (C,) in memory, or the bits of a number on the host."""
    return (thresholds.contiguous(), 0) if thresholds.ndim else (None, bits(float(thresholds)))


def _selected(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Empty maps for labels, predicted and confidence."""
    return new_map(logits, torch.int64), new_map(logits, torch.int64), new_map(logits, torch.float32)
