"""Listing folders and reading images and label files; every error names the file."""

from __future__ import annotations

import functools
import importlib
import io
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor

from selftrain_seg.datasets._cityscapes_ids import CITYSCAPES_LABELS

# What a label file of several channels holds: nothing that can be used, the id in the first channel, or a colour.
Channels = Literal["one", "first", "colours"]

_PNG = b"\x89PNG\r\n\x1a\n"
_NO_COLOUR = 255
_SHOWN = 5


def list_files(folder: Path, suffix: str) -> list[str]:
    """Sorted names of the files in ``folder`` that end in ``suffix``, without it; hidden ones are left out."""
    names = (entry.name for entry in _entries(folder))
    return sorted(name[: -len(suffix)] for name in names if name.endswith(suffix) and not name.startswith("."))


def list_folders(folder: Path) -> list[str]:
    """Sorted names of the folders in ``folder``; hidden ones are left out."""
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir() and not entry.name.startswith("."))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"`root`: expected a folder {folder}, found none") from error


def check_some(names: Sequence[str], folder: Path, what: str) -> None:
    if not names:
        raise FileNotFoundError(f"`root`: expected {what} in {folder}, found none")


def check_present(wanted: Sequence[Path], present: Sequence[bool]) -> None:
    """Every one of the ``wanted`` files is there."""
    missing = [path for path, there in zip(wanted, present, strict=True) if not there]
    if missing:
        some = ", ".join(map(str, missing[:_SHOWN])) + (", ..." if len(missing) > _SHOWN else "")
        raise FileNotFoundError(f"`root`: {len(missing)} of {len(wanted)} files are missing: {some}")


def read_image(path: Path) -> Tensor:
    """(3, H, W) uint8."""
    from PIL import Image

    data = _content(path)
    try:
        _check_png(data)
        with Image.open(io.BytesIO(data)) as image:
            return rearrange(torch.from_numpy(np.array(image.convert("RGB"))), "h w c -> c h w")
    except Exception as error:  # Pillow's are of many kinds
        raise ValueError(f"{path}: broken, or no image ({_first_line(error)})") from error


def read_ids(path: Path, channels: Channels) -> Tensor:
    """(H, W), bool or integer: the ids as they stand in a PNG, or for ``"colours"`` those of its colours."""
    pixels = _read_png(path)
    if pixels.ndim == 2:
        return pixels
    if channels == "first":
        return pixels[..., 0].contiguous()
    if channels == "colours" and pixels.dtype == torch.uint8 and pixels.shape[2] >= 3:
        return _ids_of_colours(np.asarray(pixels), path)
    raise ValueError(f"{path}: expected one channel of class ids, got {pixels.shape[2]} channels of {pixels.dtype}")


def _read_png(path: Path) -> Tensor:
    """(H, W) or (H, W, C); the indices of a palette, not its colours."""
    from PIL import Image
    from torchvision.io import ImageReadMode, decode_png

    data = _content(path)
    if not data.startswith(_PNG):
        raise ValueError(f"{path}: expected a PNG file, got something else")
    try:
        _check_png(data)
        if data[24] == 16:  # of 16 bits a channel, Pillow keeps 8 where there are several channels
            pixels: Tensor = decode_png(torch.frombuffer(data, dtype=torch.uint8), mode=ImageReadMode.UNCHANGED)
            return pixels[0] if len(pixels) == 1 else rearrange(pixels, "c h w -> h w c")
        with Image.open(io.BytesIO(data)) as image:  # torchvision misreads palettes of less than 8 bits
            return torch.from_numpy(np.array(image))
    except Exception as error:  # Pillow's are of many kinds
        raise ValueError(f"{path}: broken ({_first_line(error)})") from error


def _check_png(data: bytearray) -> None:
    """Walk through the chunks of a PNG file; nothing for other files.

    torchvision crashes on some damaged files, and Pillow does not look at all checksums.
    """
    if not data.startswith(_PNG):
        return
    start, kind = len(_PNG), b""
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


def read_mat(path: Path) -> Tensor:
    """(H, W) uint8: the segmentation in a ``cls/*.mat`` file of SBD."""
    try:
        loadmat = importlib.import_module("scipy.io").loadmat
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{path}: reading .mat files needs scipy, which is not installed") from error
    data = _content(path)
    try:
        labels = np.array(loadmat(io.BytesIO(data))["GTcls"]["Segmentation"][0, 0])
    except Exception as error:  # scipy's own are of many kinds
        raise ValueError(f"{path}: broken, or no segmentation of SBD ({_first_line(error)})") from error
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(f"{path}: expected (H, W) of uint8, got {labels.shape} of {labels.dtype}")
    return torch.from_numpy(labels)


def _content(path: Path) -> bytearray:
    data = bytearray(path.read_bytes())
    if not data:
        raise ValueError(f"{path}: empty")
    return data


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@functools.cache
def _colour_table() -> npt.NDArray[np.uint8]:
    """(2**24,): Cityscapes' id of every colour, 255 for colours that mean nothing.

    Where several ids share a colour, a trained class wins (car over license plate), then the smaller id.
    """
    table = np.full(1 << 24, _NO_COLOUR, np.uint8)
    table[_packed(np.array([20, 20, 20]))] = 4  # GTA5 draws "static" in its own colour
    for label in sorted(CITYSCAPES_LABELS, key=lambda label: (label.train_id, label.label_id), reverse=True):
        table[_packed(np.array(label.colour))] = label.label_id
    return table


def _packed(colours: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    wide = colours.astype(np.int32)
    packed: npt.NDArray[np.int32] = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    return packed


def _ids_of_colours(pixels: npt.NDArray[np.uint8], path: Path) -> Tensor:
    ids = _colour_table()[_packed(pixels)]
    wrong = pixels[ids == _NO_COLOUR]
    if len(wrong):
        red, green, blue = (int(channel) for channel in wrong[0, :3])
        raise ValueError(
            f"{path}: expected colours of Cityscapes' palette, got ({red}, {green}, {blue}) in {len(wrong)} pixels"
        )
    return torch.from_numpy(ids)
