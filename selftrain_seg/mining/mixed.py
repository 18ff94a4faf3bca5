"""Input checks, blending and the result of the mixing functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selftrain_seg import _checks

__all__ = ["MixedBatch"]

_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


class MixedBatch(NamedTuple):
    """A batch into which regions of other images were pasted.

    Attributes:
        images: (B, D, H, W), dtype of the images.
        labels: (B, H, W), dtype of the labels.
        pixel_weight: (B, H, W) pixel weights, or None if none were given.
        pasted: (B, H, W) bool, True where the pixel comes from another image; use it to mix further tensors.
    """

    images: Tensor
    labels: Tensor
    pixel_weight: Tensor | None
    pasted: Tensor


def check_batch(
    images: Tensor, labels: Tensor, pixel_weight: Tensor | None, source: Sequence[Tensor | None] | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Check a batch and its source; return the images, labels and weights to paste from."""
    _check_parts(images, labels, pixel_weight, "")
    if source is None:
        return images.roll(-1, 0), labels.roll(-1, 0), None if pixel_weight is None else pixel_weight.roll(-1, 0)
    if not isinstance(source, (tuple, list)) or len(source) not in (2, 3):
        raise ValueError(f"`source`: expected (images, labels) or (images, labels, pixel_weight), got {_kind(source)}")
    parts = (*source, None)[:3]
    others, classes, shares = parts
    _check_parts(others, classes, shares, "source ")
    for name, theirs, mine in (("images", others, images), ("labels", classes, labels)):
        if theirs is None or theirs.shape != mine.shape or theirs.dtype != mine.dtype:
            got = "None" if theirs is None else f"{tuple(theirs.shape)} {theirs.dtype}"
            raise ValueError(f"`source {name}`: expected {tuple(mine.shape)} {mine.dtype}, got {got}")
        _checks.check_device(theirs, mine, f"source {name}")
    return others, classes, shares


def check_neighbours(images: Tensor, source: object) -> None:
    """Refuse a batch of one image without a ``source``: an image mixed with itself does not change."""
    if source is None and images.shape[0] == 1:
        raise ValueError(
            "`source`: expected another batch to paste from, as this one has a single image, got None (a DataLoader"
            " with `drop_last=True` leaves out a smaller last batch)"
        )


def blend(
    batch: tuple[Tensor, Tensor, Tensor | None], source: tuple[Tensor, Tensor, Tensor | None], pasted: Tensor
) -> MixedBatch:
    """Take the source where ``pasted`` and the batch elsewhere; if only one has weights, those of the other are 1."""
    images = torch.where(pasted[:, None], source[0], batch[0])
    labels = _choose(pasted, source[1], batch[1])
    pixel_weight = None
    if batch[2] is not None or source[2] is not None:
        pixel_weight = torch.where(
            pasted,
            1.0 if source[2] is None else source[2],
            1.0 if batch[2] is None else batch[2],
        )
    return MixedBatch(images, labels, pixel_weight, pasted)


def _choose(pasted: Tensor, source: Tensor, batch: Tensor) -> Tensor:
    """``torch.where`` for labels; in torch 2.9 it lacks unsigned integers of more than 8 bits."""
    signed = _SIGNED.get(batch.dtype)
    if signed is None or source.dtype != batch.dtype:
        return torch.where(pasted, source, batch)
    return torch.where(pasted, source.view(signed), batch.view(signed)).view(batch.dtype)


def _check_parts(images: Any, labels: Any, pixel_weight: Any, prefix: str) -> None:
    _checks.check_tensor(images, f"{prefix}images")
    if images.ndim != 4:
        raise ValueError(f"`{prefix}images`: expected (B, D, H, W), got {tuple(images.shape)}")
    _checks.check_integer(labels, f"{prefix}labels")
    _checks.check_map(labels, images, f"{prefix}labels")
    if 0 in labels.shape[1:]:
        raise ValueError(f"`{prefix}labels`: expected at least one pixel per image, got {tuple(labels.shape)}")
    if pixel_weight is not None:
        _checks.check_map(pixel_weight, images, f"{prefix}pixel_weight")
        if not pixel_weight.is_floating_point():
            raise TypeError(f"`{prefix}pixel_weight`: expected a floating-point dtype, got {pixel_weight.dtype}")


def _kind(value: Any) -> str:
    return f"{len(value)} values" if isinstance(value, (tuple, list)) else type(value).__name__
