"""Checks of the arguments of a label map."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from selftrain_seg.datasets._label_tables import Colour

_LOWEST_ID, _HIGHEST_ID = -(2**15), 2**16 - 1  # the range of pixel values in image files


def check_int(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}`: expected an int, got {type(value).__name__}")


def checked_ids(ids: Mapping[int, int], num_classes: int, ignore_index: int) -> dict[int, int]:
    for label_id, number in ids.items():
        check_int(label_id, "ids")
        _check_class(number, f"ids[{label_id}]", num_classes, ignore_index)
        if not _LOWEST_ID <= label_id <= _HIGHEST_ID:
            raise ValueError(f"`ids`: expected ids in [{_LOWEST_ID}, {_HIGHEST_ID + 1}), got {label_id}")
    return {int(label_id): int(number) for label_id, number in ids.items()}


def checked_colours(colours: Mapping[Colour, int], num_classes: int, ignore_index: int) -> dict[Colour, int]:
    out = {}
    for colour, number in colours.items():
        checked = checked_colour(colour, "colours")
        _check_class(number, f"colours[{checked}]", num_classes, ignore_index)
        out[checked] = int(number)
    return out


def checked_palette(palette: Iterable[Sequence[int]], num_classes: int) -> tuple[Colour, ...]:
    colours = list(palette)
    if len(colours) != num_classes:
        raise ValueError(f"`palette`: expected {num_classes} colours, got {len(colours)}")
    return tuple(checked_colour(colour, "palette") for colour in colours)


def checked_colour(colour: Any, name: str) -> Colour:
    try:
        values = tuple(int(channel) for channel in colour)
    except (TypeError, ValueError):
        values = ()
    if len(values) != 3 or not 0 <= min(values) <= max(values) <= 255:
        raise ValueError(f"`{name}`: expected colours of three values in [0, 255], got {values or colour!r}")
    return values[0], values[1], values[2]


def _check_class(number: Any, name: str, num_classes: int, ignore_index: int) -> None:
    check_int(number, name)
    if not 0 <= number < num_classes and number != ignore_index:
        raise ValueError(
            f"`{name}`: expected a class in [0, {num_classes}) or ignore_index {ignore_index}, got {number}"
        )
