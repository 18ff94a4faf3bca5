"""Colours of classes: checks, and the colours that PASCAL VOC gives to numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Colour = tuple[int, int, int]


def voc_colour(number: int) -> Colour:
    """Return the colour of a class in PASCAL VOC; 0 is black, and all numbers below 2^24 differ.

    The bits of the number are distributed over red, green and blue in turn, from the highest bit of each.
    """
    red, green, blue = (sum((number >> 3 * bit + channel & 1) << 7 - bit for bit in range(3)) for channel in range(3))
    return red, green, blue


def checked_palette(palette: Iterable[Sequence[int]], num_classes: int) -> tuple[Colour, ...]:
    """The colours of all classes as tuples of int; ValueError unless there are C."""
    colours = list(palette)
    if len(colours) != num_classes:
        raise ValueError(f"`palette`: expected {num_classes} colours, got {len(colours)}")
    return tuple(checked_colour(colour, "palette") for colour in colours)


def checked_colour(colour: Any, name: str) -> Colour:
    """One colour as a tuple of int; ValueError unless it is three values in [0, 255]."""
    try:
        values = tuple(int(channel) for channel in colour)
    except (TypeError, ValueError):
        values = ()
    if len(values) != 3 or not 0 <= min(values) <= max(values) <= 255:
        raise ValueError(f"`{name}`: expected colours of three values in [0, 255], got {values or colour!r}")
    return values[0], values[1], values[2]
