"""Numerical helpers shared by the stages: cache-sized blocks, a fast maximum over classes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Temporaries of about this many pixels (× C floats) stay in a CPU core's cache; whole-tensor temporaries are
# several times slower there because every one of them is paged in from memory. On a GPU larger blocks keep the
# launches few and still bound the temporaries.
_CPU_BLOCK_PIXELS = 1 << 14
_GPU_BLOCK_PIXELS = 1 << 20

_LOG2_E = 1.4426950408889634


def blocks(logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut a (B, C, H, W) tensor into (images, rows) ranges to be processed one after another.

    A range holds about 16k pixels on CPU and a million on a GPU. While compiling, where the compiler does the
    tiling, it is the whole batch at once.
    """
    batch, _, height, width = logits.shape
    if torch.compiler.is_compiling():
        yield slice(0, batch), slice(0, height)
        return
    pixels = _CPU_BLOCK_PIXELS if logits.device.type == "cpu" else _GPU_BLOCK_PIXELS
    images = max(1, pixels // max(1, height * width))
    rows = max(1, pixels // max(1, width)) if images == 1 else max(1, height)
    for image in range(0, batch, images):
        for row in range(0, height, rows):
            yield slice(image, min(batch, image + images)), slice(row, min(height, row + rows))


def by_class(logits: Tensor) -> Tensor:
    """While compiling for a CPU, the logits with each class's pixels side by side; else as they are.

    The loops that the compiler makes are ten times slower over channels-last logits, and it drops a mere
    ``contiguous()``. ``as_strided`` makes it keep the copy.
    """
    if not torch.compiler.is_compiling() or logits.device.type != "cpu" or logits.is_contiguous():
        return logits
    copy = logits.clone(memory_format=torch.contiguous_format)
    return copy.as_strided(copy.shape, copy.stride())


def winner(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the largest of the classes' values at each pixel of a (b, C, h, w) float32 block.

    Returns:
        The largest (b, 1, h, w), its class (b, h, w) int64 (the first of equals), and ``values`` less the largest.
        Where a value is NaN, or the largest infinite, the class is any in range and the differences hold NaN.
    """
    if torch.compiler.is_compiling():
        # Two plain reductions become two fused loops; a maximum with indices would make the compiler store its inputs.
        top, num_classes = values.amax(dim=1, keepdim=True), values.shape[1]
        classes = torch.arange(num_classes, dtype=torch.int32, device=values.device).view(-1, 1, 1)
        index = torch.where(values == top, classes, num_classes).amin(dim=1)
        return top, index.clamp(max=num_classes - 1).long(), values - top
    if values.device.type != "cpu":
        top, labels = values.max(dim=1, keepdim=True)
        return top, labels.squeeze(1), values - top
    # torch's max with indices is not vectorised over the inner dimensions on CPU: five times slower than this.
    values = values.contiguous()
    top = values.amax(dim=1, keepdim=True)
    gaps, num_classes = values - top, values.shape[1]
    countdown = torch.arange(num_classes, 0, -1, dtype=values.dtype).view(-1, 1, 1)
    # The winner keeps its countdown, all others fall far below; so the maximum tells the first winner's class.
    index = num_classes - torch.add(countdown, gaps, alpha=1e38).amax(dim=1)
    return top, index.long().clamp_(0, num_classes - 1), gaps


def exponential(gaps: Tensor) -> Tensor:
    """Exponentials of float32 values that are not positive; to a few roundings of the value itself."""
    if gaps.device.type != "cpu" or torch.compiler.is_compiling():
        return gaps.exp()
    # exp goes through a vendor library on CPU that can take three times as long as exp2.
    return (gaps * _LOG2_E).exp2_()


def without(values: Tensor, labels: Tensor) -> Tensor:
    """Set the values (b, C, h, w) of the pixels' own classes (b, h, w) to 0; ``values`` may be overwritten."""
    if torch.compiler.is_compiling():  # a scatter would not be fused with what comes before and after
        classes = torch.arange(values.shape[1], device=values.device).view(-1, 1, 1)
        return torch.where(classes == labels.unsqueeze(1), 0.0, values)
    return values.scatter_(1, labels.unsqueeze(1), 0.0)
