"""Process a batch in blocks, so that temporaries of the plain implementations stay in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

import torch
from torch import Tensor

# Temporaries of about this many pixels (× C floats) stay in a CPU core's cache; whole-tensor temporaries are
# several times slower there, as each is paged in from memory. On a GPU, larger blocks need few launches and
# still bound the temporaries.
_CPU_BLOCK_PIXELS = 1 << 14
_GPU_BLOCK_PIXELS = 1 << 20

Block = tuple[slice, slice]


def on_cpu(tensor: Tensor) -> bool:
    """Whether to use the code paths that are faster on a CPU."""
    return tensor.device.type == "cpu"


def blocks(logits: Tensor) -> Iterator[Block]:
    """Cut a (B, C, H, W) tensor into (images, rows) ranges to be processed one after another."""
    batch, _, height, width = logits.shape
    pixels = _CPU_BLOCK_PIXELS if on_cpu(logits) else _GPU_BLOCK_PIXELS
    images = max(1, pixels // max(1, height * width))
    rows = max(1, pixels // max(1, width)) if images == 1 else max(1, height)
    for image in range(0, batch, images):
        for row in range(0, height, rows):
            yield slice(image, min(batch, image + images)), slice(row, min(height, row + rows))


@overload
def cut(tensor: Tensor, block: Block) -> Tensor: ...
@overload
def cut(tensor: Tensor | None, block: Block) -> Tensor | None: ...
def cut(tensor: Tensor | None, block: Block) -> Tensor | None:
    """View a block of a (B, H, W) or (B, C, H, W) tensor."""
    if tensor is None:
        return None
    images, rows = block
    return tensor[images, rows] if tensor.ndim == 3 else tensor[images, :, rows]


def fill(
    outputs: Sequence[Tensor], function: Callable[..., Sequence[Tensor]], logits: Tensor, *others: Tensor | None
) -> None:
    """Apply a function to the inputs block by block and store its results in maps."""
    for block in blocks(logits):
        parts = function(cut(logits, block), *(cut(other, block) for other in others))
        for whole, part in zip(outputs, parts, strict=True):
            cut(whole, block).copy_(part)


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype to compute in: float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def new_map(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised (B, H, W) map for a batch of logits."""
    return logits.new_empty((logits.shape[0], *logits.shape[2:]), dtype=dtype)
