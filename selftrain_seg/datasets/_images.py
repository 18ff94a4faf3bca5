"""Read images as tensors: any number of channels, 8 or 16 bits or floating point."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from selftrain_seg.datasets._content import Content, Pixels, decode

Channels = int | tuple[int, ...] | None

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow
_WHITE_16 = 65535


class Picture(NamedTuple):
    """An image, and facts about its file.

    Attributes:
        image: (C, H, W), uint8 or float32.
        channels: number of channels in the file.
        bits: bits per channel in the file.
        turned: the EXIF orientation that was applied; 1 if none.
    """

    image: Tensor
    channels: int
    bits: int
    turned: int


def read_picture(path: Path, channels: Channels = 3, white: int | None = None) -> Picture:
    """Read an image.

    Args:
        path: the file.
        channels: how many channels to return, or which; None for all. See ``SegmentationFolder``.
        white: the value that is scaled to 1 in images of more than 8 bits; None for 65535.
    """
    content = decode(path, ", or not an image", colours=True)
    pixels = content.pixels if content.pixels.ndim == 3 else content.pixels[..., None]
    try:
        chosen = _scale(_select_channels(pixels, content.alpha, channels), white)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    image = torch.from_numpy(np.ascontiguousarray(rearrange(chosen, "h w c -> c h w")))
    return Picture(image, _count(content), content.bits, content.turned)


def _count(content: Content) -> int:
    return 1 if content.pixels.ndim == 2 else int(content.pixels.shape[2])


def _select_channels(pixels: Pixels, alpha: bool, channels: Channels) -> Pixels:
    count = pixels.shape[2]
    if channels is None or channels == count:
        return pixels
    if isinstance(channels, tuple):
        if max(channels) >= count:
            raise ValueError(f"expected channels {channels}, numbered from 0, got {count} channels")
        return pixels[..., list(channels)]
    colours = count - alpha
    if channels == colours:
        return pixels[..., :colours]
    if channels == 3 and colours == 1:
        return pixels[..., [0, 0, 0]]
    if channels == 1 and colours == 3:
        grey: Pixels = pixels[..., :3].astype(np.float32) @ np.array(_LUMA, np.float32)
        if pixels.dtype.kind != "f":
            grey = grey.round()
        return grey.astype(pixels.dtype)[..., None]
    raise ValueError(
        f"expected {channels} channel{'s' * (channels != 1)}, got {count}"
        f"{', including opacity' if alpha else ''}; `channels=None` keeps all, `channels=(0, 1, 2)` picks three"
    )


def _scale(pixels: Pixels, white: int | None) -> Pixels:
    """Keep 8 bits; scale integers of more bits to [0, 1] float32; convert floating point to float32."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind == "f":
        return pixels.astype(np.float32)
    if pixels.dtype.kind not in "iu":
        raise ValueError(f"expected 8 or 16 bits or floating point, got {pixels.dtype}")
    if white is None:
        if pixels.dtype != np.uint16:
            raise ValueError(
                f"{pixels.dtype} has no standard value of white: expected 8 or 16 bits or floating point, or `white=`,"
                " the value that is scaled to 1"
            )
        white = _WHITE_16
    low, high = (int(pixels.min()), int(pixels.max())) if pixels.size else (0, 0)
    if low < 0 or high > white:
        raise ValueError(f"expected values from 0 to `white` {white}, got {low} to {high}")
    scaled: Pixels = pixels.astype(np.float32) / np.float32(white)
    return scaled
