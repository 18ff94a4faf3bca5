"""Launches of the kernels, for the stages. The caller has checked the logits and found them ``kernels.chosen``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_TILE = 4096  # elements a program, classes × pixels: 32 registers a thread with 4 warps
_MAX_PIXELS = 256
_GROUP = 32  # pixels whose counts are added up before they go to memory
_KINDS = ("nll", "kld", "entropy", "square", "ignored_entropy")  # in the order of the kernels' arguments


def top(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Label (B, H, W) int64 and log-confidence (B, H, W) float32."""
    from selftrain_seg.kernels._selection import top_kernel  # Triton is imported when first needed

    labels, log_confidence = _map(logits, torch.int64), _map(logits, torch.float32)
    _launch(top_kernel, logits, (labels, log_confidence))
    return labels, log_confidence


def count_scores(logits: Tensor, counts: Tensor, *, low: float, bin_width: float) -> None:
    """Add every pixel's bin to ``counts`` (C, K) int64, contiguous, in place. The bin width is a power of two."""
    from selftrain_seg.kernels._selection import count_kernel  # Triton is imported when first needed

    group = min(_GROUP, _plan(logits).pixels)
    _launch(
        count_kernel, logits, (counts,), numbers=(low / bin_width, 1.0 / bin_width), BINS=counts.shape[1], GROUP=group
    )


def select_hard(logits: Tensor, bar: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, predicted, confidence; ``bar`` (C,) float32 is what a class's score must reach."""
    from selftrain_seg.kernels._selection import hard_kernel  # Triton is imported when first needed

    maps = _selected(logits)
    _launch(hard_kernel, logits, (bar.contiguous(), *maps), numbers=(int(ignore_index),))
    return maps


def select_reweighted(logits: Tensor, gain: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, predicted, confidence; ``gain`` (C,) float32 is what re-weighting adds to a class's log-probability."""
    from selftrain_seg.kernels._selection import reweighted_kernel  # Triton is imported when first needed

    maps = _selected(logits)
    _launch(reweighted_kernel, logits, (gain.contiguous(), *maps), numbers=(int(ignore_index),))
    return maps


def select_soft(
    logits: Tensor, gain: Tensor, sharpness: float, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labels, predicted, confidence, soft; ``gain`` (C,) float32 comes multiplied by the sharpness 1 / alpha."""
    from selftrain_seg.kernels._selection import soft_kernel  # Triton is imported when first needed

    maps, soft = _selected(logits), torch.empty_like(logits, dtype=torch.float32)
    _launch(soft_kernel, logits, (gain.contiguous(), *maps, soft), (soft,), (int(ignore_index), sharpness))
    return *maps, soft


def pixel_maps(logits: Tensor, target: Tensor, kinds: tuple[str, ...], ignore_index: int) -> tuple[Tensor, ...]:
    """``valid`` (B, H, W) bool and the maps (B, H, W) float32 of these kinds."""
    from selftrain_seg.kernels._losses import maps_kernel  # Triton is imported when first needed

    valid, maps = _map(logits, torch.bool), {kind: _map(logits, torch.float32) for kind in kinds}
    outputs = (maps.get(kind) for kind in _KINDS)
    target, soft = _labels(target, logits)
    _launch(maps_kernel, logits, (target, valid, *outputs), (soft,), (int(ignore_index),), SOFT=soft is target)
    return (valid, *maps.values())


def pixel_gradient(logits: Tensor, target: Tensor, grads: dict[str, Tensor], ignore_index: int) -> Tensor:
    """Gradient of the logits, given those that arrived for maps."""
    from selftrain_seg.kernels._losses import gradient_kernel  # Triton is imported when first needed

    # The gradient of a sum is one value for all pixels, and is read as one.
    same = {kind: not any(grad.stride()) for kind, grad in grads.items()}
    grads = {kind: grad if same[kind] else grad.contiguous() for kind, grad in grads.items()}
    steps = (int(not same.get(kind, True)) for kind in _KINDS)
    result = torch.empty_like(logits)
    target, soft = _labels(target, logits)
    tensors = (target, *(grads.get(kind) for kind in _KINDS), result)
    _launch(gradient_kernel, logits, tensors, (soft, result), (int(ignore_index), *steps), SOFT=soft is target)
    return result


def _labels(target: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Labels as the kernels read them, hard ones contiguous, and the tensor whose strides are to be passed for them."""
    return (target, target) if target.ndim == 4 else (target.contiguous(), logits)


def _selected(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Room for labels, predicted, confidence."""
    return _map(logits, torch.int64), _map(logits, torch.int64), _map(logits, torch.float32)


def _map(logits: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty((logits.shape[0], *logits.shape[-2:]), dtype=dtype, device=logits.device)


class _Plan(NamedTuple):
    """How a batch is cut into programs, and where its elements lie."""

    programs: int
    pixels: int  # a program, all of one row
    tile_classes: int
    dense: bool  # whether the classes of a run of pixels lie end to end in every strided tensor
    layout: tuple[int, ...]  # height, width, and for each tensor strides of batch, class, height, width


def _plan(logits: Tensor, *strided: Tensor) -> _Plan:
    batch, classes, height, width = logits.shape
    strides = [tensor.stride() for tensor in (logits, *strided)]
    if width == 1:
        height, width, strides = 1, height, [(b, c, 0, h) for b, c, h, _ in strides]
    elif height == 1 or all(h == width * w for _, _, h, w in strides):  # the rows follow each other: one long row
        height, width = 1, height * width
    tile_classes = 1 << (classes - 1).bit_length()
    pixels = min(_MAX_PIXELS, _TILE // tile_classes)
    programs = batch * height * -(-width // pixels)
    dense = classes > 1 and all(c == 1 and w == classes for _, c, _, w in strides)
    return _Plan(programs, pixels, tile_classes, dense, (height, width, *(s for each in strides for s in each)))


def _launch(
    kernel: Any,
    logits: Tensor,
    tensors: tuple[Tensor | None, ...],
    strided: tuple[Tensor, ...] = (),
    numbers: tuple[float, ...] = (),
    **sizes: int,
) -> None:
    """Call a kernel with tensors, the layout of the logits and of those that are strided, then numbers."""
    plan = _plan(logits, *strided)
    if plan.programs == 0:
        return
    try:
        with torch.cuda.device(logits.get_device()):  # -1, the CPU, changes nothing
            kernel[(plan.programs,)](
                logits, *tensors, *plan.layout, *numbers, C=logits.shape[1], TILE_C=plan.tile_classes,
                PIXELS=plan.pixels, DENSE=plan.dense, **sizes, enable_fp_fusion=False,
            )  # fmt: skip
    except Exception as error:  # Triton compiles for each combination of dtypes and layouts, not all checked before
        hint = "set SELFTRAIN_SEG_KERNELS=0 or call selftrain_seg.kernels.enable(False) for the plain path"
        raise RuntimeError(f"a kernel could not be started ({type(error).__name__}: {error}); {hint}") from error
