"""Images that are kept for a while, a byte for each value."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selftrain_seg.ops import wide

_LEVELS = 255


class Kept(NamedTuple):
    """Images as bytes, or as they were."""

    values: Tensor  # (B, D, H, W) uint8, the levels from ``low`` to ``high``; or the images
    low: Tensor | None  # (B, D, 1), of the images' dtype: the least value of each channel; None for values as they were
    high: Tensor | None  # the greatest


def pack(images: Tensor, as_bytes: bool) -> Kept:
    """Copy images, floating-point ones as bytes if so asked for: 256 levels for each channel of each image."""
    images = images.detach()
    if not as_bytes or not images.is_floating_point() or images.ndim < 3 or 0 in images.shape[2:]:
        return Kept(images.clone(), None, None)
    low, high = images.flatten(2).aminmax(dim=2, keepdim=True)
    dtype = wide(images)
    values = images.flatten(2).to(dtype) - low.to(dtype)
    values.mul_(_LEVELS / (high.to(dtype) - low.to(dtype)).clamp(min=torch.finfo(dtype).tiny)).round_()
    return Kept(values.to(torch.uint8).view(images.shape), low, high)


def unpack(kept: Kept) -> Tensor:
    """The images, at most half a level off, in their dtype."""
    if kept.low is None or kept.high is None:
        return kept.values
    dtype = wide(kept.low)
    low, high = kept.low.to(dtype), kept.high.to(dtype)
    values = torch.addcmul(low, kept.values.flatten(2).to(dtype), (high - low) / _LEVELS)
    return values.view(kept.values.shape).to(kept.low.dtype)


def moved(kept: Kept, device: torch.device | None) -> Kept:
    """On a device; None leaves them where they are."""
    if device is None or kept.low is None or kept.high is None:
        return kept if device is None else kept._replace(values=kept.values.to(device))
    return Kept(kept.values.to(device), kept.low.to(device), kept.high.to(device))
