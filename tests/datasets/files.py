"""Image files of many kinds, written by hand or by Pillow, with what they hold."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def png(pixels, bits: int) -> bytes:
    """Grey, (H, W), of 1, 2, 4, 8 or 16 bits, by hand: values as they are."""
    pixels = np.asarray(pixels)
    rows = b"".join(b"\0" + packed(row, bits) for row in pixels)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def packed(row, bits: int) -> bytes:
    """Values of some bits, one after the other, from the highest bit down; whole bytes."""
    text = "".join(f"{int(value):0{bits}b}" for value in row)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[start : start + 8], 2) for start in range(0, len(text), 8))


def tiff(
    pixels, *, bits: int | None = None, photometric: int | None = None, extra: int = 0, big: bool = False
) -> bytes:
    """(H, W) or (H, W, C) unsigned, uncompressed, by hand; ``extra`` says what channels beyond three are."""
    pixels = np.asarray(pixels)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, channels = pixels.shape
    bits = 8 * pixels.itemsize if bits is None else bits
    sign = ">" if big else "<"
    if bits < 8:
        data = b"".join(packed(row.ravel(), bits) for row in pixels)
    else:
        data = pixels.astype(f"{sign}u{bits // 8}").tobytes()
    if photometric is None:
        photometric = 2 if channels >= 3 else 1
    tags = [(256, [width]), (257, [height]), (258, [bits] * channels), (259, [1]), (262, [photometric]), (273, [8])]
    tags += [(277, [channels]), (278, [height]), (279, [len(data)]), (284, [1])]
    beyond = channels - (3 if photometric == 2 else 1)
    if beyond:
        tags.append((338, [0] * (beyond - 1) + [extra]))
    data += b"\0" * (len(data) % 2)
    start = 8 + len(data)
    behind, body = b"", struct.pack(f"{sign}H", len(tags))
    after = start + 2 + 12 * len(tags) + 4
    for tag, values in tags:
        kind, form = (4, "I") if tag in (256, 257, 273, 278, 279) else (3, "H")
        raw = struct.pack(f"{sign}{len(values)}{form}", *values)
        if len(raw) > 4:
            place = struct.pack(f"{sign}I", after + len(behind))
            behind += raw
        else:
            place = raw.ljust(4, b"\0")
        body += struct.pack(f"{sign}HHI", tag, kind, len(values)) + place
    head = (b"MM\0*" if big else b"II*\0") + struct.pack(f"{sign}I", start)
    return head + data + body + b"\0\0\0\0" + behind


def encoded(pixels, kind: str, **options) -> bytes:
    """By Pillow."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()
