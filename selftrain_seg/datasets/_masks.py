"""Read label files as classes: ids in one channel, palette indices, or colours."""

from __future__ import annotations

import functools
import importlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selftrain_seg.datasets._content import JPEG, decode, first_line, read_bytes

if TYPE_CHECKING:
    from selftrain_seg.datasets.label_map import LabelMap

# How the values of a label file are interpreted; see ``SegmentationFolder``.
Reading = Literal["auto", "ids", "first", "colours"]

_SHOWN = 5


class MaskFile(NamedTuple):
    """The decoded content of a label file.

    Attributes:
        pixels: (H, W), or (H, W, C) for several channels.
        palette: (N, 3) uint8 if ``pixels`` are palette indices, else None.
        alpha: whether the last channel is an opacity.
    """

    pixels: npt.NDArray[Any]
    palette: npt.NDArray[np.uint8] | None = None
    alpha: bool = False


def read_mask_file(path: Path) -> MaskFile:
    """Read the raw values of a file, without scaling; of a palette, the indices."""
    with path.open("rb") as file:
        head = file.read(3)
    if head == JPEG:
        raise ValueError(
            f"{path}: expected a PNG file, or another lossless format, got a JPEG, which changes values at every edge;"
            " export the labels again as PNG from the annotations, not from the JPEG"
        )
    content = decode(path, ", or not a label file: expected a PNG file", colours=False)
    if content.pixels.dtype.kind == "f":
        raise ValueError(f"{path}: expected integers, got {content.pixels.dtype}; save the ids as integers")
    return MaskFile(content.pixels, content.palette, content.alpha)


def classes_of(mask: MaskFile, reading: Reading, label_map: LabelMap) -> Tensor:
    """Return (H, W) int64, training classes or ``ignore_index``.

    Raises:
        ValueError: the file does not fit ``reading`` or ``label_map``; the message lacks the file's name.
    """
    pixels = mask.pixels
    if pixels.ndim == 3:
        colours = pixels[..., :-1] if mask.alpha else pixels
        if colours.shape[2] == 1:
            return classes_of(MaskFile(colours[..., 0]), reading, label_map)
        return _of_channels(colours, pixels.shape[2], reading, label_map)
    if mask.palette is not None and reading in ("auto", "colours") and label_map.colours:
        return _of_palette(pixels, mask.palette, reading, label_map)
    if reading == "colours" or (reading == "auto" and label_map.colours and not label_map.ids):
        return _of_colours(_as_colours(pixels), label_map)
    return label_map(torch.from_numpy(pixels))


def _of_channels(pixels: npt.NDArray[Any], count: int, reading: Reading, label_map: LabelMap) -> Tensor:
    if reading == "first":
        return label_map(torch.from_numpy(np.ascontiguousarray(pixels[..., 0])))
    what = f"expected one channel of class ids, got {count} channels of torch.{pixels.dtype}"
    if reading == "ids" or pixels.shape[2] != 3:
        raise ValueError(f'{what}; `read_masks="first"` reads the first channel')
    by_colour = pixels.dtype == np.uint8 and bool(label_map.colours)
    if reading == "auto" and label_map.ids and (pixels[..., :1] == pixels[..., 1:]).all():
        grey = np.ascontiguousarray(pixels[..., 0])  # ids saved as RGB by some programs, or grey colours
        if not by_colour or any((value, value, value) not in label_map.colours for value in values_of(grey)):
            return label_map(torch.from_numpy(grey))
    if not label_map.colours:
        raise ValueError(
            f"{what}, and the label map has no colours; give it some (LabelMap.from_colours), or read the first"
            ' channel with `read_masks="first"`'
        )
    if not by_colour:
        raise ValueError(f"{what}; colours must have 8 bits per channel")
    return _of_colours(pixels, label_map)


def values_of(pixels: npt.NDArray[Any]) -> list[int]:
    """The values that occur, ascending."""
    if pixels.dtype == np.uint8:  # several times faster than NumPy's bincount
        counts = torch.bincount(torch.from_numpy(pixels).flatten(), minlength=256)
        return [int(value) for value in np.asarray(counts).nonzero()[0]]
    return [int(value) for value in np.unique(pixels)]


def _as_colours(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Grey values as colours; one bit gives black and white."""
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype != np.uint8:
        raise ValueError(f"expected colours of 8 bits, got one channel of {pixels.dtype}")
    return np.stack((pixels, pixels, pixels), axis=-1)


def _of_palette(
    pixels: npt.NDArray[Any], palette: npt.NDArray[np.uint8], reading: Reading, label_map: LabelMap
) -> Tensor:
    """Read by index if the file's palette agrees with the label map or has no meaning (blank, grey), else by colour."""
    full = np.zeros((256, 3), np.uint8)
    full[: len(palette)] = palette
    used = values_of(pixels)
    colours = [(int(red), int(green), int(blue)) for red, green, blue in full[used]]
    grey = all({*colour} == {index} for index, colour in zip(used, colours, strict=True))
    blank = len(used) > 1 and len(set(colours)) == 1
    if reading == "auto" and label_map.ids:
        conflicts = _conflicts(used, colours, label_map)
        if not conflicts or blank or grey:
            return label_map(torch.from_numpy(pixels))
        if any(colour not in label_map.colours for colour in colours):
            index, colour = conflicts[0]
            raise ValueError(
                f"its palette is not the label map's: index {index} is drawn in {colour}, but id {index} in the label"
                f' map is {_meaning(index, label_map)}; SegmentationFolder(..., read_masks="ids") reads the indices and'
                " ignores the palette"
            )
    return _of_colours(full[pixels], label_map)


def _conflicts(
    used: list[int], colours: list[tuple[int, int, int]], label_map: LabelMap
) -> list[tuple[int, tuple[int, int, int]]]:
    """Indices, with their colours, whose class in the label map differs from that of the colour.

    Published tables give some ignored ids the colour of a class (GTA5 draws license plates in the blue of cars), so an
    ignored id conflicts only if no class in the file agrees with its colour.
    """
    coloured = {*label_map.colours.values()}
    agree, conflicts, ignored = False, [], []
    for index, colour in zip(used, colours, strict=True):
        by_id, by_colour = label_map.ids.get(index), label_map.colours.get(colour)
        if by_id == label_map.ignore_index:
            if by_colour not in (None, by_id):
                ignored.append((index, colour))
        elif by_id is None or (by_id in coloured and by_id != by_colour):
            conflicts.append((index, colour))
        else:
            agree = True
    return conflicts if agree else conflicts + ignored


def _meaning(index: int, label_map: LabelMap) -> str:
    number = label_map.ids.get(index)
    if number is None:
        return "unknown"
    if number == label_map.ignore_index:
        return "ignored"
    mine = [colour for colour, of in label_map.colours.items() if of == number]
    return f"{label_map.classes[number]}, in {mine[0]}" if mine else label_map.classes[number]


def _of_colours(pixels: npt.NDArray[np.uint8], label_map: LabelMap) -> Tensor:
    if not label_map.colours:
        raise ValueError("expected a label map with colours (LabelMap.from_colours), got one without")
    table, values = _colour_table(label_map)
    found = table[_packed(pixels)]
    wrong = found == 0
    if label_map.unknown == "error" and wrong.any():
        raise ValueError(_unknown_colours(pixels, wrong))
    return torch.from_numpy(values[found])


def _unknown_colours(pixels: npt.NDArray[np.uint8], wrong: npt.NDArray[np.bool_]) -> str:
    colours, counts = np.unique(pixels[wrong], axis=0, return_counts=True)
    row, column = (int(place[0]) for place in wrong.nonzero())
    order = np.argsort(-counts, kind="stable")[:_SHOWN]
    some = ", ".join(
        f"{tuple(int(value) for value in colours[i])} in {int(counts[i])} pixel{'s' * bool(counts[i] != 1)}"
        for i in order
    )
    more = f" and {len(colours) - _SHOWN} more colours" if len(colours) > _SHOWN else ""
    return f"expected colours of the label map, got {some}{more}, the first at row {row}, column {column}"


@functools.lru_cache(maxsize=4)
def _colour_table(label_map: LabelMap) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """A (2**24,) table colour -> number, 0 if unknown, and the class of each number."""
    colours = label_map.colours
    table = np.zeros(1 << 24, np.uint8 if len(colours) < 256 else np.uint16)
    for number, colour in enumerate(colours, 1):
        table[_packed(np.array(colour))] = number
    return table, np.array([label_map.ignore_index, *colours.values()], np.int64)


def _packed(colours: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    wide = colours.astype(np.int32)
    packed: npt.NDArray[np.int32] = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    return packed


def read_mat(path: Path) -> MaskFile:
    """Read the segmentation in a ``cls/*.mat`` file of SBD, (H, W) uint8."""
    try:
        loadmat = importlib.import_module("scipy.io").loadmat
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{path}: reading .mat files needs scipy, which is not installed") from error
    data = read_bytes(path)
    try:
        labels = np.array(loadmat(io.BytesIO(data))["GTcls"]["Segmentation"][0, 0])
    except Exception as error:  # scipy raises many kinds
        raise ValueError(f"{path}: broken, or not a segmentation of SBD ({first_line(error)})") from error
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(f"{path}: expected (H, W) uint8, got {labels.shape} {labels.dtype}")
    return MaskFile(labels)
