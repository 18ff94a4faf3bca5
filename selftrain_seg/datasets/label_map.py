"""Map the ids in label files to training classes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg._palette import checked_colour, checked_palette
from selftrain_seg.datasets import _label_files
from selftrain_seg.datasets._label_checks import check_int, checked_colours, checked_ids, describe_values
from selftrain_seg.datasets._label_entries import Entry, named, table
from selftrain_seg.datasets._label_presets import Presets, _Unknown
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["LabelMap"]

_UNKNOWN = torch.iinfo(torch.int64).min


@dataclass(frozen=True, repr=False)
class LabelMap(Presets):
    """Translate the ids in a data set's files into training classes 0 to C - 1, with names and colours.

    ``label_map(labels)`` is one table lookup. It takes a tensor of any shape, of bools or integers, on any device, and
    returns a new int64 tensor of the same shape on that device. Do not apply it twice to the same labels.

    For your own data, use :meth:`from_names`, :meth:`from_colours`, :meth:`binary`, or :meth:`load` from a JSON or CSV
    file. Presets: :meth:`cityscapes` (GTA5 has the same ids), :meth:`synthia`, :meth:`bdd100k`, :meth:`voc`, and
    :meth:`streets` for the files that :meth:`SyntheticStreets.export` writes.

    Args:
        ids: id -> class or ``ignore_index``, for every id that may occur in the files. Ids are in [-32768, 65536).
        classes: the C class names, all different.
        palette: the C display colours, (red, green, blue) in [0, 255].
        unknown: treatment of ids that are not in ``ids``: ``"error"`` raises an error that lists them (the host waits
            for the device), ``"ignore"`` maps them to ``ignore_index``.
        ignore_index: the label of pixels without a class, outside [0, C).
        colours: (red, green, blue) -> class or ``ignore_index``, to read label files in colours and check palettes.

    Attributes:
        ids: the table, read-only.
        classes: C names.
        palette: C colours.
        unknown: ``"error"`` or ``"ignore"``.
        ignore_index: the label of pixels without a class.
        colours: the table of colours, read-only; empty if there is none.

    Raises:
        TypeError: an id, a class or ``ignore_index`` is not an int, a name is not a str; when called, ``labels``
            is not a tensor of integers or bools.
        ValueError: an id is outside [-32768, 65536); a class is neither in [0, C) nor ``ignore_index``; there are no
            classes, or two have the same name; ``palette`` is not C colours; ``unknown`` is none of those listed;
            ``ignore_index`` is a class; when called with ``unknown="error"``, ``labels`` has an unknown id.

    Example:
        >>> import torch
        >>> from selftrain_seg.datasets import LabelMap
        >>> label_map = LabelMap.cityscapes()
        >>> label_map(torch.tensor([[7, 8], [26, 0]], dtype=torch.uint8))
        tensor([[  0,   1],
                [ 13, 255]])
        >>> label_map.num_classes, label_map.classes[13], label_map.palette[13]
        (19, 'car', (0, 0, 142))
        >>> label_map(torch.tensor([7, 35]))
        Traceback (most recent call last):
        ValueError: `labels`: expected ids of LabelMap(19 classes, 36 ids from -1 to 34), got 35 (1 pixel, the first
        at 1)
    """

    ids: Mapping[int, int]
    classes: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    unknown: Literal["error", "ignore"] = "error"
    ignore_index: int = IGNORE_INDEX
    colours: Mapping[tuple[int, int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _checks.check_choice(self.unknown, "unknown", ("error", "ignore"))
        classes = tuple(self.classes)
        for name in classes:
            if not isinstance(name, str):
                raise TypeError(f"`classes`: expected names, got {type(name).__name__}")
        if not classes or len(set(classes)) != len(classes):
            raise ValueError(f"`classes`: expected at least one name and all different, got {classes}")
        check_int(self.ignore_index, "ignore_index")
        if 0 <= self.ignore_index < len(classes):
            raise ValueError(f"`ignore_index`: expected a value outside [0, {len(classes)}), got {self.ignore_index}")
        for store, value in (
            ("ids", MappingProxyType(checked_ids(self.ids, len(classes), self.ignore_index))),
            ("classes", classes),
            ("palette", checked_palette(self.palette, len(classes))),
            ("colours", MappingProxyType(checked_colours(self.colours, len(classes), self.ignore_index))),
            ("_tables", {}),
        ):
            object.__setattr__(self, store, value)

    def __hash__(self) -> int:
        ids, colours = frozenset(self.ids.items()), frozenset(self.colours.items())
        return hash((ids, colours, self.classes, self.palette, self.unknown, self.ignore_index))

    def __reduce__(self) -> tuple[Any, ...]:
        ids, colours = dict(self.ids), dict(self.colours)
        return LabelMap, (ids, self.classes, self.palette, self.unknown, self.ignore_index, colours)

    def __repr__(self) -> str:
        low, high = min(self.ids, default=0), max(self.ids, default=0)
        ids = f", {len(self.ids)} ids from {low} to {high}" if self.ids or not self.colours else ""
        colours = "" if self.ids or not self.colours else f", {len(self.colours)} colours"
        return f"LabelMap({self.num_classes} classes{ids}{colours})"

    def __call__(self, labels: Tensor) -> Tensor:
        """Translate ``labels``, bool or integer of any shape, to int64 of the same shape."""
        _checks.check_tensor(labels, "labels")
        if labels.is_floating_point() or labels.is_complex():
            raise TypeError(f"`labels`: expected an integer dtype or torch.bool, got {labels.dtype}")
        first, table = self._table(labels.device)
        if labels.dtype in (torch.uint8, torch.bool):  # the table covers all values
            index = labels.to(torch.int32).sub_(first)
        else:
            index = labels.to(torch.int64).sub(first).clamp_(0, len(table) - 1)
        out = table.index_select(0, index.flatten()).view(labels.shape)
        if self.unknown == "error" and out.numel() and int(out.min()) == _UNKNOWN:
            raise ValueError(f"`labels`: expected ids of {self}, got {describe_values(labels, out == _UNKNOWN)}")
        return out

    def _table(self, device: torch.device) -> tuple[int, Tensor]:
        """The id of the first entry, and the table of classes; its end entries stand for all ids beyond."""
        first, last = min(self.ids, default=0), max(self.ids, default=0)
        first, last = min(first, 0) - 1, max(last, 255) + 1
        tables: dict[torch.device, Tensor] = vars(self)["_tables"]
        if device not in tables:
            other = _UNKNOWN if self.unknown == "error" else self.ignore_index
            tables[device] = torch.tensor([self.ids.get(i, other) for i in range(first, last + 1)], device=device)
        return first, tables[device]

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.classes)

    def to_rgb(self, labels: Tensor) -> Tensor:
        """Paint training labels with ``palette``, for display.

        Args:
            labels: (..., H, W), integer training classes.

        Returns:
            (..., 3, H, W) uint8 on the device of ``labels``; black for ignored and invalid labels.

        Raises:
            TypeError: ``labels`` is not an integer tensor.
            ValueError: ``labels`` has fewer than two dimensions.
        """
        _checks.check_integer(labels, "labels")
        if labels.ndim < 2:
            raise ValueError(f"`labels`: expected (..., H, W), got {tuple(labels.shape)}")
        colours = torch.tensor([*self.palette, (0, 0, 0)], dtype=torch.uint8, device=labels.device)
        wide = labels.to(torch.int64)
        wide = torch.where((wide < 0) | (wide >= self.num_classes), self.num_classes, wide)
        return colours[wide].movedim(-1, -3).contiguous()

    def ignoring(self, *names: str) -> LabelMap:
        """Return a map that ignores some classes; all classes keep their number, name and colour.

        Pixels of these classes become ``ignore_index``, so they are neither trained on nor counted. The number of
        classes is still C, to match the outputs of a network.

        Args:
            names: names of the classes to ignore.

        Returns:
            The new map.

        Raises:
            ValueError: a name is not a class.

        Example:
            >>> import torch
            >>> from selftrain_seg.datasets import LabelMap
            >>> truth = LabelMap.cityscapes().ignoring("terrain", "truck", "train")
            >>> truth(torch.tensor([21, 22, 23])), truth.num_classes  # vegetation, terrain, sky
            (tensor([  8, 255,  10]), 19)
        """
        left_out = {self._class_number(name, "names") for name in names}
        ids, colours = (
            {key: self.ignore_index if label in left_out else label for key, label in table.items()}
            for table in (self.ids, self.colours)
        )
        return replace(self, ids=ids, colours=colours)  # type: ignore[arg-type]

    def numbers_in(self, other: LabelMap) -> Tensor:
        """Return the number of each class in another map, by name.

        Use it to compare predictions in one numbering with labels in another.

        Args:
            other: a map that has all classes of this one.

        Returns:
            (C,) int64, on the CPU.

        Raises:
            ValueError: ``other`` lacks a class.

        Example:
            >>> import torch
            >>> from selftrain_seg.datasets import LabelMap
            >>> numbers = LabelMap.cityscapes(16).numbers_in(LabelMap.cityscapes())
            >>> numbers[torch.tensor([[8, 9, 15]])]  # vegetation, sky, bicycle
            tensor([[ 8, 10, 18]])
        """
        return torch.tensor([other._class_number(name, "other") for name in self.classes])

    def _class_number(self, name: str, argument: str) -> int:
        if name not in self.classes:
            raise ValueError(
                f"`{argument}`: expected classes of {self}, got {name!r}; it has {', '.join(self.classes)}"
            )
        return self.classes.index(name)

    @classmethod
    def from_names(
        cls,
        names: Mapping[int | tuple[int, ...], str | None],
        *,
        colours: Mapping[str, tuple[int, int, int]] | None = None,
        unknown: _Unknown = "error",
        ignore_index: int = IGNORE_INDEX,
    ) -> LabelMap:
        """Make a map from ids and names; classes are numbered in the order given.

        Args:
            names: id in the files, or tuple of ids -> name of the class, or None to ignore the id. Ids with the same
                name are one class.
            colours: name -> colour, for display and for label files in colours; other classes get one automatically.
            unknown: as for :class:`LabelMap`.
            ignore_index: as for :class:`LabelMap`; with more than 255 classes it cannot be 255.

        Returns:
            The map.

        Raises:
            TypeError: an id is not an int, or a name not a str.
            ValueError: an id is given twice, or ``colours`` has a name that is not a class.

        Example:
            >>> import torch
            >>> from selftrain_seg.datasets import LabelMap
            >>> label_map = LabelMap.from_names({0: "background", 2: "road", (7, 40): "roof", 9: None})
            >>> label_map.classes, label_map(torch.tensor([0, 2, 7, 40, 9])).tolist()
            (('background', 'road', 'roof'), [0, 1, 2, 2, 255])
        """
        return cls._from_entries(named(names, colours), unknown, ignore_index)

    @classmethod
    def from_colours(cls, names: Mapping[tuple[int, int, int], str | None], *, unknown: _Unknown = "error") -> LabelMap:
        """Make a map for label files in colours; classes are numbered in the order given.

        Args:
            names: (red, green, blue) in the files -> name of the class, or None to ignore the colour. Colours with the
                same name are one class, displayed in the first.
            unknown: as for :class:`LabelMap`; it applies to colours as well.

        Returns:
            The map.

        Raises:
            ValueError: a colour is not three values in [0, 255].

        Example:
            >>> from selftrain_seg.datasets import LabelMap
            >>> LabelMap.from_colours({(0, 0, 0): "background", (255, 0, 0): "disc", (128, 128, 128): None}).palette
            ((0, 0, 0), (255, 0, 0))
        """
        checked = [(checked_colour(colour, "names"), name) for colour, name in names.items()]
        return cls._from_entries([Entry(name, (), colour, (colour,)) for colour, name in checked], unknown)

    @classmethod
    def binary(cls, name: str = "foreground", *, unknown: _Unknown = "error") -> LabelMap:
        """Make a map of two classes: background for 0 or black, ``name`` for 1, 255 or white.

        Args:
            name: name of class 1.
            unknown: as for :class:`LabelMap`.

        Returns:
            The map.

        Example:
            >>> import torch
            >>> from selftrain_seg.datasets import LabelMap
            >>> LabelMap.binary("vessel")(torch.tensor([0, 255, 1])).tolist()
            [0, 1, 1]
        """
        black, white = (0, 0, 0), (255, 255, 255)
        entries = [Entry("background", (0,), black, (black,)), Entry(name, (1, 255), white, (white,))]
        return cls._from_entries(entries, unknown)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LabelMap:
        """Read classes from a JSON or CSV file.

        JSON is a file written by :meth:`save`; or ``{"0": "background", "255": "vessel", "9": null}``, where null means
        ignored; or a list of names, whose ids are 0, 1, ...; or a list of objects such as
        ``{"name": "road", "ids": [7], "colour": [128, 64, 128]}``. ``"id"``, ``"color"`` and ``"#804080"`` are accepted
        as well, and ``"ignore": true`` replaces the name.

        CSV has a line of headings: ``name``, and ``id`` or ``ids`` (separated by spaces), or ``r,g,b``, or ``colour``.
        Rows with 1 in a column ``ignore`` are ignored. Classes without a colour get one automatically.

        Args:
            path: ends in ``.json`` or ``.csv``.

        Returns:
            The map.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is invalid; the message names it and the reason.
        """
        entries, others = _label_files.read(Path(path))
        try:
            return cls._from_entries(entries, **others)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a JSON file that :meth:`load` reads back as an equal map, completely or not at all.

        Args:
            path: ends in ``.json``; an existing file is replaced.

        Returns:
            ``path`` as a Path.

        Raises:
            ValueError: ``path`` does not end in ``.json``.

        Example:
            >>> import os, tempfile
            >>> from selftrain_seg.datasets import LabelMap
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = LabelMap.voc().save(os.path.join(folder, "classes.json"))
            ...     LabelMap.load(path) == LabelMap.voc()
            True
        """
        path = Path(path)
        if path.suffix.lower() != ".json":
            raise ValueError(f"`path`: expected a name that ends in .json, got {path}")
        _label_files.write(path, self)
        return path

    @classmethod
    def _from_entries(
        cls, entries: Iterable[Entry], unknown: _Unknown = "error", ignore_index: int = IGNORE_INDEX
    ) -> LabelMap:
        made = table(entries, ignore_index)
        return cls(made.ids, made.classes, made.palette, unknown, ignore_index, made.colours)

    def _with_colours(self, ids: Mapping[tuple[int, int, int], int]) -> LabelMap:
        """Add colours of label files, given as colour -> id; ids that this map does not have are skipped."""
        return replace(self, colours={colour: self.ids[key] for colour, key in ids.items() if key in self.ids})
