"""Encode maps of bytes as PNG files, palette or grey, deterministically."""

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
    """(H, W) -> PNG with a palette of 256 colours, by default greys. No row filter: fast and best for labels."""
    image = Image.frombytes("P", (values.shape[1], values.shape[0]), values.tobytes())
    image.putpalette(_GREYS if palette is None else palette)
    return _encoded(image)


def encode_grey(values: Bytes) -> bytes:
    """(H, W) -> grey PNG with row filters, best for smooth maps."""
    return _encoded(Image.frombytes("L", (values.shape[1], values.shape[0]), values.tobytes()))


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    # For the maps of a round, run-length encoding is faster and smaller than level 3 of the default strategy.
    image.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def decode(data: bytes) -> Bytes:
    """(H, W): indices or greys. Stacked planes may exceed the pixel limit of ``Image.open``, so it is not used."""
    with PngImageFile(io.BytesIO(data)) as image:
        return np.array(image, np.uint8)


def full_palette(colours: tuple[tuple[int, int, int], ...], ignore_index: int) -> bytes:
    """256 colours: those of the classes; black for ignored pixels and unused values."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = colours
    table[ignore_index] = 0
    return table.tobytes()


def default_colours(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """Distinct colours other than black: the bits of label + 1 are distributed over red, green and blue."""
    colours = []
    for number in range(1, num_classes + 1):
        red, green, blue = (sum((number >> 3 * i + channel & 1) << 7 - i for i in range(3)) for channel in range(3))
        colours.append((red, green, blue))
    return tuple(colours)
