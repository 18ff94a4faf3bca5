"""Maps of bytes as PNG files: palette or grey, the same bytes for the same map."""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

_GREYS = bytes(value for level in range(256) for value in (level, level, level))


def encode_indexed(values: Bytes, palette: bytes | None = None) -> bytes:
    """(H, W) -> PNG with a palette of 256 colours, greys without one. No row filter: right for labels, and fast."""
    image = Image.frombytes("P", (values.shape[1], values.shape[0]), values.tobytes())
    image.putpalette(_GREYS if palette is None else palette)
    return _encoded(image)


def encode_grey(values: Bytes) -> bytes:
    """(H, W) -> grey PNG with row filters: right for smooth maps."""
    return _encoded(Image.frombytes("L", (values.shape[1], values.shape[0]), values.tobytes()))


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    # Run lengths alone beat level 3 of the default strategy both in time and in bytes on all maps that are kept here.
    image.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def decode(data: bytes) -> Bytes:
    """(H, W): the indices or greys. Not by ``Image.open``, whose limit on pixels stacked planes would meet."""
    with PngImageFile(io.BytesIO(data)) as image:
        return np.array(image, np.uint8)


def full_palette(colours: tuple[tuple[int, int, int], ...], ignore_index: int) -> bytes:
    """256 colours: the classes' own, black for ignored pixels and for values that do not occur."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = colours
    table[ignore_index] = 0
    return table.tobytes()
