"""Decode an image file of any kind. Every error names the file and says how to fix it."""

from __future__ import annotations

import importlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange

Pixels = npt.NDArray[Any]

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WIDTH, _HEIGHT, _ORIENTATION, _BITS, _SAMPLES, _PHOTOMETRIC, _PAGE_KIND = 256, 257, 274, 258, 277, 262, 254
_REDUCED = 1
_OPACITY = (1, 2)  # the values of TIFF's ExtraSamples that mean opacity


class FileError(ValueError):
    """A complete message about a file, which lacks only the file's name."""


class Content(NamedTuple):
    """The decoded content of an image file.

    Attributes:
        pixels: (H, W) or (H, W, C), with the EXIF orientation applied.
        mode: Pillow's mode, or the decoder that was used: ``"torchvision"`` or ``"tifffile"``.
        palette: (N, 3) uint8 if ``pixels`` are palette indices, else None.
        alpha: whether the last channel is an opacity.
        bits: bits per channel in the file.
        turned: the EXIF orientation that was applied; 1 if none.
    """

    pixels: Pixels
    mode: str
    palette: npt.NDArray[np.uint8] | None = None
    alpha: bool = False
    bits: int = 8
    turned: int = 1


def read_bytes(path: Path) -> bytearray:
    data = bytearray(path.read_bytes())
    if not data:
        raise ValueError(f"{path}: empty")
    return data


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def decode(path: Path, what: str, *, colours: bool) -> Content:
    """Read an image file.

    Args:
        path: the file.
        what: continues the message "broken" if the file cannot be decoded, such as ``", or not an image"``.
        colours: True returns palette colours and scales grey to 8 bits; False returns palette indices and raw values.
    """
    data = read_bytes(path)
    with _naming_file(path, what):
        check_png(data)
        content = _decode(data, colours)
        if content.pixels.ndim not in (2, 3) or not content.pixels.size:  # of damaged TIFF files
            raise ValueError(f"pixels of shape {content.pixels.shape}")
        return content


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) as ``decode`` returns them, read from the file's header."""
    from PIL import Image, UnidentifiedImageError

    with _naming_file(path, ", or not an image"), path.open("rb") as file:
        try:
            with Image.open(file) as image:
                width, height = image.size
                if image.format == "TIFF":  # Pillow's size is before or after turning, depending on its version
                    width, height = (int(image.tag_v2[tag]) for tag in (_WIDTH, _HEIGHT))
                turned = _orientation(image) >= 5
        except UnidentifiedImageError:
            file.seek(0)
            if file.read(4) not in _TIFF:
                raise
            height, width = _by_tifffile(read_bytes(path)).pixels.shape[:2]
            turned = False
    return (width, height) if turned else (height, width)


@contextmanager
def _naming_file(path: Path, what: str) -> Iterator[None]:
    """Re-raise every error with the file's name."""
    from PIL import Image

    try:
        yield
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except FileError as error:
        raise ValueError(f"{path}: {error}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{path}: larger than Pillow's limit against decompression bombs ({first_line(error)}); if you trust the"
            " file, set PIL.Image.MAX_IMAGE_PIXELS = None in every worker process, or cut the image into tiles"
        ) from error
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(f"{path}: broken{what} ({first_line(error)})") from error


def _decode(data: bytearray, colours: bool) -> Content:
    from PIL import Image, UnidentifiedImageError

    is_tiff = data.startswith(_TIFF)
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        if not is_tiff:
            raise
        return _by_tifffile(data)
    with image:
        _check_frames(image)
        if is_tiff and _needs_tifffile(image):
            return _by_tifffile(data)
        bits, orientation = _bits(image, data), _orientation(image)
        if data.startswith(PNG) and bits == 16:  # Pillow reduces several channels to 8 bits
            pixels, mode, palette = _by_torchvision(data), "torchvision", None
            alpha = pixels.shape[2] in (2, 4)
        else:
            pixels, mode, palette, alpha = _by_pillow(image, bits, colours)
        if not is_tiff:
            orientation = _orientation(image)  # PNG may store it after the pixels
    # Pillow turns a TIFF by itself.
    return Content(_upright(pixels, 1 if is_tiff else orientation), mode, palette, alpha, bits, orientation)


def _by_pillow(image: Any, bits: int, colours: bool) -> tuple[Pixels, str, npt.NDArray[np.uint8] | None, bool]:
    mode, palette = image.mode, None
    if mode in ("P", "PA") and not colours:
        palette = np.frombuffer(bytes(image.getpalette("RGB") or b""), np.uint8).reshape(-1, 3)
        pixels = np.array(image)
        return (pixels[..., 0] if mode == "PA" else pixels), mode, palette, False
    if mode == "P":
        mode = "RGBA" if "transparency" in image.info else "RGB"
        image = image.convert(mode)
    elif mode in ("PA", "CMYK", "YCbCr", "HSV"):
        mode = "RGBA" if mode == "PA" else "RGB"
        image = image.convert(mode)
    elif mode == "LAB":
        raise FileError("holds L*a*b* colours; convert it to RGB")
    pixels = np.array(image)
    if mode == "1" and colours:
        pixels = pixels.astype(np.uint8) * 255
    if mode == "L" and bits in (2, 4) and not colours:  # Pillow scales them to 8 bits
        pixels //= 85 if bits == 2 else 17
    if not colours and image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0:
        raise FileError("a TIFF that stores white as 0 (WhiteIsZero), so its values are ambiguous; save it as PNG")
    return pixels, mode, palette, mode in ("LA", "RGBA", "La", "RGBa")


def _bits(image: Any, data: bytearray) -> int:
    """Bits per channel in the file."""
    if data.startswith(PNG):
        return data[24]
    if image.format == "TIFF":
        return int(image.tag_v2.get(_BITS, (1,))[0])
    return 1 if image.mode == "1" else 8


def _check_frames(image: Any) -> None:
    """Check that the file holds one image; reduced copies (previews of cameras, pyramids) do not count."""
    frames = getattr(image, "n_frames", 1)
    if frames == 1 or image.format == "MPO":
        return
    if image.format == "TIFF":
        reduced = 0
        for number in range(1, frames):
            image.seek(number)
            reduced += int(image.tag_v2.get(_PAGE_KIND, 0)) & _REDUCED
        image.seek(0)
        if reduced == frames - 1:
            return
    raise FileError(f"holds {frames} frames or pages; expected one image: save the one you want as a separate file")


def _orientation(image: Any) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data is ignored; Pillow raises many kinds
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF orientation; the result has the native byte order."""
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _by_torchvision(data: bytearray) -> Pixels:
    from torchvision.io import ImageReadMode, decode_png

    pixels = decode_png(torch.frombuffer(data, dtype=torch.uint8), mode=ImageReadMode.UNCHANGED)
    return np.asarray(rearrange(pixels, "c h w -> h w c"))


def _needs_tifffile(image: Any) -> bool:
    """Whether Pillow would silently drop channels or bits of a TIFF."""
    samples, bits = int(image.tag_v2.get(_SAMPLES, 1)), image.tag_v2.get(_BITS, (1,))
    bands = len(image.getbands())
    return samples != bands or (samples > 1 and max(bits) > 8)


def _by_tifffile(data: bytearray) -> Content:
    from PIL import Image

    try:
        tifffile = importlib.import_module("tifffile")
    except ModuleNotFoundError as error:
        raise FileError(
            "a TIFF with more channels or bits than Pillow reads; install tifffile: pip install tifffile"
        ) from error
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        others = sum(not other.is_reduced for other in list(file.pages)[1:])
        if others:
            raise FileError(f"holds {others + 1} pages; expected one image: save the one you want as a separate file")
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and page.imagewidth * page.imagelength > 2 * limit:
            raise Image.DecompressionBombError(f"{page.imagewidth * page.imagelength} pixels, limit {2 * limit}")
        pixels = np.asarray(page.asarray())
        if page.axes == "SYX":
            pixels = np.moveaxis(pixels, 0, -1)
        elif page.axes not in ("YX", "YXS"):
            raise FileError(f"a TIFF with axes {page.axes}; expected height, width and channels")
        tag = page.tags.get(_ORIENTATION)
        orientation = int(tag.value) if tag is not None and 1 <= int(tag.value) <= 8 else 1
        extra = tuple(int(kind) for kind in page.extrasamples)
        alpha = bool(extra) and extra[-1] in _OPACITY
        bits = int(page.bitspersample)
    return Content(_upright(pixels, orientation), "tifffile", None, alpha, bits, orientation)


def check_png(data: bytearray) -> None:
    """Check the chunks of a PNG file; other files are not checked.

    torchvision crashes on some damaged files, and Pillow does not verify all checksums.
    """
    if not data.startswith(PNG):
        return
    start, kind = len(PNG), b""
    while kind != b"IEND":
        if start + 12 > len(data):
            raise ValueError("truncated")
        length, kind = int.from_bytes(data[start : start + 4], "big"), bytes(data[start + 4 : start + 8])
        end = start + 8 + length
        if end + 4 > len(data):
            raise ValueError("truncated")
        critical = not kind[0] & 32
        if critical and zlib.crc32(memoryview(data)[start + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ValueError(f"wrong checksum of the chunk {kind!r}")
        start = end + 4
