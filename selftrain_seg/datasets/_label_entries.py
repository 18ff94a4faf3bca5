"""Entries of a table of classes, and the label map that they make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from selftrain_seg._palette import Colour, checked_colour
from selftrain_seg.datasets._label_checks import check_int
from selftrain_seg.datasets._label_tables import drawn_colours


class Entry(NamedTuple):
    """One row of a class file: a class, or ids and colours to ignore.

    Attributes:
        name: of the class; None if ignored.
        ids: its values in label files; None if the file does not list ids for it.
        colour: its display colour; None to choose one.
        colours: its colours in label files.
    """

    name: str | None
    ids: tuple[int, ...] | None = None
    colour: Colour | None = None
    colours: tuple[Colour, ...] = ()


class Table(NamedTuple):
    """The arguments of a label map."""

    ids: dict[int, int]
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    colours: dict[Colour, int]


def named(
    names: Mapping[int | tuple[int, ...], str | None], colours: Mapping[str, Colour] | None = None
) -> list[Entry]:
    """Convert the arguments of ``LabelMap.from_names``."""
    known = {} if colours is None else {name: checked_colour(colour, "colours") for name, colour in colours.items()}
    entries = []
    for ids, name in names.items():
        several = tuple(ids) if isinstance(ids, tuple) else (ids,)
        for label_id in several:
            check_int(label_id, "names")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"`names[{ids}]`: expected a name or None, got {type(name).__name__}")
        colour = None if name is None else known.get(name)
        entries.append(Entry(name, several, colour, () if colour is None else (colour,)))
    strangers = sorted({*known} - {entry.name for entry in entries if entry.name is not None})
    if strangers:
        raise ValueError(f"`colours`: expected names of classes, got {strangers}")
    return entries


def table(entries: Iterable[Entry], ignore_index: int) -> Table:
    """Number the classes in order of appearance; entries with the same name are one class."""
    entries = list(entries)
    names = list(dict.fromkeys(entry.name for entry in entries if entry.name is not None))
    ids: dict[int, int] = {}
    colours: dict[Colour, int] = {}
    shown: dict[str, Colour] = {}
    for entry in entries:
        number = ignore_index if entry.name is None else names.index(entry.name)
        for label_id in entry.ids or ():
            if ids.setdefault(label_id, number) != number:
                raise ValueError(f"id {label_id} stands for two classes; expected one")
        for colour in entry.colours:
            if colours.setdefault(colour, number) != number:
                raise ValueError(f"colour {colour} stands for two classes; expected one")
        if entry.name is not None and entry.colour is not None:
            shown.setdefault(entry.name, entry.colour)
    drawn = drawn_colours([name for name in names if name not in shown], [*shown.values(), *colours])
    return Table(ids, tuple(names), tuple((shown | drawn)[name] for name in names), colours)
