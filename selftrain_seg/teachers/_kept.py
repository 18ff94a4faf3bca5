"""Compact copies of images, one byte per value."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selftrain_seg.ops import wide

_LEVELS = 255


class Kept(NamedTuple):
    """Images as bytes, or unchanged."""

    values: Tensor  # (B, D, H, W) uint8, levels from ``low`` to ``high``; or the images themselves
    low: Tensor | None  # (B, D, 1), dtype of the images: minimum of each channel; None if ``values`` are the images
    high: Tensor | None  # likewise the maximum


def pack(images: Tensor, as_bytes: bool) -> Kept:
    """Copy images; with ``as_bytes`` quantise floating-point ones to 256 levels for each channel of each image."""
    images = images.detach()
    if not as_bytes or not images.is_floating_point() or images.ndim < 3 or 0 in images.shape[2:]:
        return Kept(images.clone(), None, None)
    low, high = images.flatten(2).aminmax(dim=2, keepdim=True)
    dtype = wide(images)
    values = images.flatten(2).to(dtype) - low.to(dtype)
    values.mul_(_LEVELS / (high.to(dtype) - low.to(dtype)).clamp(min=torch.finfo(dtype).tiny)).round_()
    return Kept(values.to(torch.uint8).view(images.shape), low, high)


def unpack(kept: Kept) -> Tensor:
    """Return the images in their dtype; bytes are off by at most half a level."""
    if kept.low is None or kept.high is None:
        return kept.values
    dtype = wide(kept.low)
    low, high = kept.low.to(dtype), kept.high.to(dtype)
    values = torch.addcmul(low, kept.values.flatten(2).to(dtype), (high - low) / _LEVELS)
    return values.view(kept.values.shape).to(kept.low.dtype)


def moved(kept: Kept, device: torch.device | None) -> Kept:
    """Move to a device; None does nothing."""
    if device is None or kept.low is None or kept.high is None:
        return kept if device is None else kept._replace(values=kept.values.to(device))
    return Kept(kept.values.to(device), kept.low.to(device), kept.high.to(device))
