"""Shared steps of the restyling functions: checks of two batches, and handling of non-finite values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selftrain_seg import _checks


def check_pair(images: Any, style: Any) -> None:
    """Check two batches (B, D, H, W) with the same B, D and device; H and W may differ."""
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
    """Return centred values, means and a mask of finite values, per image and channel.

    Means are over finite values; other values are centred to 0. Distances from the largest value are averaged, so a
    constant channel gives exact zeros.
    """
    finite = images.isfinite()
    top = torch.where(finite, images, -torch.inf).amax((-2, -1), keepdim=True)
    below = torch.where(finite, images - top, 0.0)
    mean = below.sum((-2, -1), keepdim=True) / finite.sum((-2, -1), keepdim=True)
    return torch.where(finite, below - mean, 0.0), top + mean, finite


def finish(restyled: Tensor, images: Tensor, finite: Tensor, clip: bool) -> Tensor:
    """Return the result in the dtype of ``images``, with their non-finite values restored."""
    restyled = restyled.clamp(0.0, 1.0) if clip else restyled
    return torch.where(finite, restyled.to(images.dtype), images)


def wide(tensor: Tensor) -> Tensor:
    """Convert to at least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
