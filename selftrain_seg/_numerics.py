"""Numerical helpers shared by the stages: cache-sized blocks and means that never divide by zero."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Temporaries of about this many pixels (× C floats) stay in a CPU core's cache; whole-tensor temporaries are
# several times slower there because every one of them is paged in from memory.
_BLOCK_PIXELS = 16384


def blocks(logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut a (B, C, H, W) tensor into (images, rows) ranges to be processed one after another.

    On CPU a range holds about 16k pixels. On a GPU, where many small launches cost more than they save, and
    while compiling, where the compiler does the tiling, it is the whole batch at once.
    """
    batch, _, height, width = logits.shape
    if logits.device.type != "cpu" or torch.compiler.is_compiling():
        yield slice(0, batch), slice(0, height)
        return
    images = max(1, _BLOCK_PIXELS // max(1, height * width))
    rows = max(1, _BLOCK_PIXELS // max(1, width)) if images == 1 else max(1, height)
    for image in range(0, batch, images):
        for row in range(0, height, rows):
            yield slice(image, min(batch, image + images)), slice(row, min(height, row + rows))


def masked_mean(values: Tensor, count: Tensor) -> Tensor:
    """Sum of ``values`` over ``count`` in the caller's sense of a count; exactly 0 where the count is 0.

    ``values`` must already be 0 outside the mask. The result stays connected to the graph, so that an empty
    selection gives zero gradients instead of none (which would hang distributed training).
    """
    return values.sum() / count.clamp(min=1).to(values.dtype)
