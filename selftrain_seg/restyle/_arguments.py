"""What the functions of this room share: checks of two batches, and which of their values count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selftrain_seg import _checks


def check_pair(images: Any, style: Any) -> None:
    """Two batches (B, D, H, W) of the same B and D, on one device; their sizes may differ."""
    for value, name in ((images, "images"), (style, "style")):
        _checks.check_tensor(value, name)
        if not value.is_floating_point():
            raise TypeError(f"`{name}`: expected a floating-point dtype, got {value.dtype}; divide 8-bit images by 255")
        if value.ndim != 4 or 0 in value.shape[1:]:
            raise ValueError(f"`{name}`: expected (B, D, H, W) with at least one pixel, got {tuple(value.shape)}")
    if style.shape[:2] != images.shape[:2]:
        raise ValueError(
            f"`style`: expected one image of {images.shape[1]} channels for each of the {images.shape[0]} `images`, "
            f"got {tuple(style.shape)}"
        )
    _checks.check_device(style, images, "style")


def centred(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values less their mean, the mean, and which values are finite: of each image and channel, over finite values.

    Others are 0 in the first. A constant channel gives exact zeros: what is averaged is the distance from the greatest
    value.
    """
    finite = images.isfinite()
    top = torch.where(finite, images, -torch.inf).amax((-2, -1), keepdim=True)
    below = torch.where(finite, images - top, 0.0)
    mean = below.sum((-2, -1), keepdim=True) / finite.sum((-2, -1), keepdim=True)
    return torch.where(finite, below - mean, 0.0), top + mean, finite


def finish(restyled: Tensor, images: Tensor, finite: Tensor, clip: bool) -> Tensor:
    """The result in the dtype of ``images``, with what was not finite in them as it was."""
    restyled = restyled.clamp(0.0, 1.0) if clip else restyled
    return torch.where(finite, restyled.to(images.dtype), images)


def wide(tensor: Tensor) -> Tensor:
    """At least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
