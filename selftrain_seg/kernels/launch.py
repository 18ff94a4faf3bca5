"""Launches of the kernels, for the stages. The caller has checked the logits and found them ``kernels.chosen``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_TILE = 4096  # elements a program, classes × pixels: 32 registers a thread with 4 warps
_MAX_PIXELS = 256
_GROUP = 32  # pixels whose counts are added up before they go to memory


def top(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Label (B, H, W) int64 and log-confidence (B, H, W) float32."""
    from selftrain_seg.kernels._triton import top_kernel  # Triton is imported when first needed

    labels, log_confidence = _map(logits, torch.int64), _map(logits, torch.float32)
    _launch(top_kernel, logits, (labels, log_confidence))
    return labels, log_confidence


def count_scores(logits: Tensor, counts: Tensor, *, low: float, bin_width: float) -> None:
    """Add every pixel's bin to ``counts`` (C, K) int64, contiguous, in place. The bin width is a power of two."""
    from selftrain_seg.kernels._triton import count_kernel  # Triton is imported when first needed

    bins = counts.shape[1]
    group = min(_GROUP, _plan(logits).pixels)
    _launch(count_kernel, logits, (counts,), (low / bin_width, 1.0 / bin_width), BINS=bins, GROUP=group)


def select_hard(logits: Tensor, bar: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, predicted, confidence; ``bar`` (C,) float32 is what a class's score must reach."""
    from selftrain_seg.kernels._triton import hard_kernel  # Triton is imported when first needed

    return _select(hard_kernel, logits, bar, ignore_index)


def select_reweighted(logits: Tensor, gain: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, predicted, confidence; ``gain`` (C,) float32 is what re-weighting adds to a class's log-probability."""
    from selftrain_seg.kernels._triton import reweighted_kernel  # Triton is imported when first needed

    return _select(reweighted_kernel, logits, gain, ignore_index)


def _select(kernel: Any, logits: Tensor, per_class: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    labels, predicted = _map(logits, torch.int64), _map(logits, torch.int64)
    confidence = _map(logits, torch.float32)
    _launch(kernel, logits, (per_class.contiguous(), labels, predicted, confidence), (ignore_index,))
    return labels, predicted, confidence


def _map(logits: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty((logits.shape[0], *logits.shape[-2:]), dtype=dtype, device=logits.device)


class _Plan(NamedTuple):
    """How a batch is cut into programs, and where its elements lie."""

    programs: int
    pixels: int  # a program, all of one row
    tile_classes: int
    layout: tuple[int, ...]  # height, width, strides of batch, class, height, width


def _plan(logits: Tensor) -> _Plan:
    batch, classes, height, width = logits.shape
    stride_b, stride_c, stride_h, stride_w = logits.stride()
    if width == 1:
        height, width, stride_w = 1, height, stride_h
    elif height == 1 or stride_h == width * stride_w:  # the rows follow each other: one long row
        height, width = 1, height * width
    tile_classes = 1 << (classes - 1).bit_length()
    pixels = min(_MAX_PIXELS, _TILE // tile_classes)
    programs = batch * height * -(-width // pixels)
    return _Plan(programs, pixels, tile_classes, (height, width, stride_b, stride_c, stride_h, stride_w))


def _launch(
    kernel: Any, logits: Tensor, maps: tuple[Tensor, ...], numbers: tuple[float, ...] = (), **sizes: int
) -> None:
    plan = _plan(logits)
    if plan.programs == 0:
        return
    with torch.cuda.device(logits.get_device()):  # -1, the CPU, changes nothing
        kernel[(plan.programs,)](
            logits, *maps, *plan.layout, *numbers,
            C=logits.shape[1], TILE_C=plan.tile_classes, PIXELS=plan.pixels, **sizes, enable_fp_fusion=False,
        )  # fmt: skip
