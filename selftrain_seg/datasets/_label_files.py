"""Read and write classes as JSON or CSV files."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selftrain_seg._files import whole_file
from selftrain_seg._palette import Colour, checked_colour
from selftrain_seg.datasets._label_entries import Entry

if TYPE_CHECKING:
    from selftrain_seg.datasets.label_map import LabelMap

_NAMES = ("name", "class", "label")
_IDS = ("id", "ids", "index", "value")
_COLOURS = ("colour", "color", "rgb")
_CHANNELS = (("r", "g", "b"), ("red", "green", "blue"))
_YES = ("1", "true", "yes", "x")


def read(path: Path) -> tuple[list[Entry], dict[str, Any]]:
    """Read the entries, and further arguments of the label map.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a table of classes; the message names it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(f"`path`: expected a file {path}, found none") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8 ({error})") from error
    try:
        if path.suffix.lower() == ".json":
            return _from_json(json.loads(text, object_pairs_hook=_unique_keys))
        if path.suffix.lower() in (".csv", ".tsv", ".txt"):
            return _from_csv(text), {}
        raise ValueError("expected a name that ends in .json or .csv")
    except (ValueError, TypeError, LookupError, AttributeError, csv.Error) as error:
        raise ValueError(f"{path}: {error}") from error


def _from_json(data: Any) -> tuple[list[Entry], dict[str, Any]]:
    if isinstance(data, list):
        return _with_default_ids([_entry(item) for item in data]), {}
    if not isinstance(data, dict):
        raise ValueError(f"expected a list of classes or a mapping, got {type(data).__name__}")
    if "classes" not in data:  # {"0": "background", "255": "vessel"}
        return [Entry(None if name is None else _text(name), (_int(key),)) for key, name in data.items()], {}
    entries = _with_default_ids([_entry(item) for item in data["classes"]])
    if data.get("ignore"):
        entries.append(_entry(data["ignore"] | {"ignore": True}))
    return entries, {key: data[key] for key in ("unknown", "ignore_index") if key in data}


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{key!r} occurs twice")
    return dict(pairs)


def _entry(item: Any) -> Entry:
    if isinstance(item, str):
        return Entry(item)
    if not isinstance(item, Mapping):
        raise ValueError(f"expected a class as a name or a mapping, got {item!r}")
    item = {str(key).strip().lower(): value for key, value in item.items()}
    ignored = str(item.get("ignore", "")).lower() in _YES
    name = next((item[key] for key in _NAMES if item.get(key) not in (None, "")), None)
    if name is None and not ignored:
        raise ValueError(f"expected a name in {item!r}")
    ids: Any = next((item[key] for key in _IDS if item.get(key) not in (None, "")), None)
    colour = next((_colour(item[key]) for key in _COLOURS if item.get(key) not in (None, "")), None)
    for keys in _CHANNELS:
        if colour is None and all(item.get(key) not in (None, "") for key in keys):
            colour = checked_colour([_int(item[key]) for key in keys], "colour")
    colours = item.get("colours", item.get("colors"))
    if colours is None:
        colours = [] if colour is None else [colour]
    return Entry(
        None if ignored else _text(name),
        None if ids is None else tuple(_int(value) for value in (ids if isinstance(ids, list) else [ids])),
        colour,
        tuple(_colour(value) for value in colours),
    )


def _from_csv(text: str) -> list[Entry]:
    numbers, lines = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            numbers.append(number)
            lines.append(line)
    head = lines[0] if lines else ""
    delimiter = max(",;\t", key=head.count)
    rows = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)
    columns = [str(column).strip().lower() for column in rows.fieldnames or ()]
    if not {*columns} & {*_NAMES}:
        raise ValueError(f"expected a first line of headings with 'name', and 'id' or 'r', 'g', 'b', got {head!r}")
    entries = []
    for number, row in zip(numbers[1:], rows, strict=False):
        if None in row or None in row.values():
            raise ValueError(f"line {number}: expected {len(columns)} columns, as in the first line")
        item: dict[str, Any] = {key.strip().lower(): value.strip() for key, value in row.items()}
        for key in _IDS:
            if key in item:
                item[key] = item[key].replace(";", " ").replace(",", " ").split() or None
        try:
            entries.append(_entry(item))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return _with_default_ids(entries)


def _with_default_ids(entries: list[Entry]) -> list[Entry]:
    """Assign the ids 0, 1, ... to a plain list of names."""
    bare = [entry.name for entry in entries if entry.ids is None and not entry.colours]
    if len(bare) == len(entries):
        return [entry._replace(ids=(number,)) for number, entry in enumerate(entries)]
    if bare:
        raise ValueError(f"expected an id or a colour for each class; {bare[0]!r} has none")
    return entries


def _text(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"expected a name, got {name!r}")
    return name


def _int(value: Any) -> int:
    """Convert a number or text to an int."""
    if isinstance(value, bool) or not (isinstance(value, (int, str))):
        raise ValueError(f"expected a whole number, got {value!r}")
    try:
        return int(value)
    except ValueError as error:
        raise ValueError(f"expected a whole number, got {value!r}") from error


def _colour(value: Any) -> Colour:
    """Parse ``[r, g, b]``, ``"r g b"`` with any separators, or ``"#rrggbb"``."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("#") and len(text) == 7:
            return checked_colour(bytes.fromhex(text[1:]), "colour")
        value = text.strip("()[]").replace(",", " ").replace(";", " ").split()
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"expected a colour as [red, green, blue] or '#rrggbb', got {value!r}")
    return checked_colour([_int(channel) for channel in value], "colour")


def write(path: Path, label_map: LabelMap) -> None:
    """Write JSON, one class per line, completely or not at all."""
    classes = [_line(label_map, number) for number in range(label_map.num_classes)]
    others = {
        "ignore": _line(label_map, label_map.ignore_index),
        "unknown": label_map.unknown,
        "ignore_index": label_map.ignore_index,
    }
    lines = ",\n    ".join(json.dumps(entry, ensure_ascii=False) for entry in classes)
    rest = "".join(f",\n  {json.dumps(key)}: {json.dumps(value)}" for key, value in others.items())
    data = f'{{\n  "classes": [\n    {lines}\n  ]{rest}\n}}\n'.encode()
    with whole_file(path) as file:
        file.write(data)


def _line(label_map: LabelMap, number: int) -> dict[str, Any]:
    """The JSON object of a class, or of ``ignore_index``."""
    out: dict[str, Any] = {"ids": [label_id for label_id, of in label_map.ids.items() if of == number]}
    if number != label_map.ignore_index:
        out = {"name": label_map.classes[number], **out, "colour": list(label_map.palette[number])}
    return out | {"colours": [list(colour) for colour, of in label_map.colours.items() if of == number]}
