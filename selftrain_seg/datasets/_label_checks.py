"""Checks of the arguments of a label map."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from selftrain_seg._palette import Colour, checked_colour

_LOWEST_ID, _HIGHEST_ID = -(2**15), 2**16 - 1  # the range of pixel values in image files
_SHOWN = 5


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


def _check_class(number: Any, name: str, num_classes: int, ignore_index: int) -> None:
    check_int(number, name)
    if not 0 <= number < num_classes and number != ignore_index:
        raise ValueError(
            f"`{name}`: expected a class in [0, {num_classes}) or ignore_index {ignore_index}, got {number}"
        )


def describe_values(labels: Tensor, wrong: Tensor) -> str:
    """Describe the values where ``wrong``: which, how many, and where the first is."""
    # torch 2.9 cannot index 16-bit unsigned tensors
    values, counts = torch.unique(labels.to(torch.int64)[wrong], return_counts=True)
    shown = values[:_SHOWN]
    some = ", ".join(str(int(value)) for value in shown) + (", ..." if len(values) > len(shown) else "")
    count, first = int(counts.sum()), tuple(int(place) for place in wrong.nonzero()[0])
    where = f", the first at {first[0] if len(first) == 1 else first}" if first else ""
    return f"{some} ({count} pixel{'s' * (count != 1)}{where})"
