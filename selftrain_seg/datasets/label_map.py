"""From the ids in a data set's files to the classes a network is trained on."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.datasets._cityscapes_ids import CITYSCAPES_LABELS
from selftrain_seg.datasets._export import STREETS_TO_ID
from selftrain_seg.datasets.streets import SyntheticStreets
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["LabelMap"]

_Unknown = Literal["error", "ignore"]
_Colour = tuple[int, int, int]

_LOWEST_ID, _HIGHEST_ID = -(2**15), 2**16 - 1  # what the pixels of an image file can hold
_UNKNOWN = torch.iinfo(torch.int64).min

_TRAINED = sorted(
    (label for label in CITYSCAPES_LABELS if label.train_id != IGNORE_INDEX), key=lambda label: label.train_id
)
_CITYSCAPES_IDS = (-1, *(label.label_id for label in CITYSCAPES_LABELS))  # -1 is Cityscapes' license plate

# SYNTHIA-RAND-CITYSCAPES. The others of its 23 ids: 0 void, 13 parking slot, 14 road works, 16 terrain, 18 truck,
# 20 train, 22 lane marking; of these 13, 16, 18 and 20 never occur.
_SYNTHIA_IDS = {
    "road": 3,
    "sidewalk": 4,
    "building": 2,
    "wall": 21,
    "fence": 5,
    "pole": 7,
    "traffic light": 15,
    "traffic sign": 9,
    "vegetation": 6,
    "sky": 1,
    "person": 10,
    "rider": 17,
    "car": 8,
    "bus": 19,
    "motorcycle": 12,
    "bicycle": 11,
}
_NOT_IN_13 = ("wall", "fence", "pole")

_VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "tv monitor",
)


@dataclass(frozen=True, repr=False)
class LabelMap:
    """Translate the ids in a data set's files into training classes 0 to C - 1, with names and colours.

    ``label_map(labels)`` is one table lookup. It takes a tensor of any shape, of bools or any integers, on any
    device, and gives a new int64 tensor of that shape there; tensors that are already translated must not be
    translated again.

    Presets: :meth:`cityscapes` (GTA5 has the same ids), :meth:`synthia`, :meth:`bdd100k`, :meth:`voc`, and
    :meth:`streets` for what :meth:`SyntheticStreets.export` wrote. For other data, give the table yourself.

    Args:
        ids: for every id that may occur in the files, its class, or ``ignore_index``. Ids lie in
            [-32768, 65536).
        classes: names of the C classes, all different.
        palette: their C colours, (red, green, blue) in [0, 255] each.
        unknown: what ids that are not in ``ids`` give, negative ones included: ``"error"`` raises and names them,
            for which the host waits for the device, ``"ignore"`` gives ``ignore_index``.
        ignore_index: outside [0, C).

    Attributes:
        ids: the table, read-only.
        classes: C names.
        palette: C colours.
        unknown: ``"error"`` or ``"ignore"``.
        ignore_index: the label of pixels without a class.

    Raises:
        TypeError: an id, a class or ``ignore_index`` is not an int, a name is not a str; when called, ``labels``
            is not a tensor of integers or bools.
        ValueError: an id is outside [-32768, 65536); a class is neither in [0, C) nor ``ignore_index``; no
            classes, or two of one name; ``palette`` is not C colours; ``unknown`` is none of those listed;
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
        ValueError: `labels`: expected ids of LabelMap(19 classes, 36 ids from -1 to 34), got 35
    """

    ids: Mapping[int, int]
    classes: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    unknown: Literal["error", "ignore"] = "error"
    ignore_index: int = IGNORE_INDEX

    def __post_init__(self) -> None:
        _checks.check_choice(self.unknown, "unknown", ("error", "ignore"))
        classes = tuple(self.classes)
        for name in classes:
            if not isinstance(name, str):
                raise TypeError(f"`classes`: expected names, got {type(name).__name__}")
        if not classes or len(set(classes)) != len(classes):
            raise ValueError(f"`classes`: expected at least one name and all different, got {classes}")
        _check_int(self.ignore_index, "ignore_index")
        if 0 <= self.ignore_index < len(classes):
            raise ValueError(f"`ignore_index`: expected a value outside [0, {len(classes)}), got {self.ignore_index}")
        for store, value in (
            ("ids", MappingProxyType(_checked_ids(self.ids, len(classes), self.ignore_index))),
            ("classes", classes),
            ("palette", _checked_palette(self.palette, len(classes))),
            ("_tables", {}),
        ):
            object.__setattr__(self, store, value)

    def __hash__(self) -> int:
        return hash((frozenset(self.ids.items()), self.classes, self.palette, self.unknown, self.ignore_index))

    def __reduce__(self) -> tuple[Any, ...]:
        return LabelMap, (dict(self.ids), self.classes, self.palette, self.unknown, self.ignore_index)

    def __repr__(self) -> str:
        low, high = min(self.ids, default=0), max(self.ids, default=0)
        return f"LabelMap({self.num_classes} classes, {len(self.ids)} ids from {low} to {high})"

    def __call__(self, labels: Tensor) -> Tensor:
        """Translate ``labels``, (...) of bools or integers, to (...) int64."""
        _checks.check_tensor(labels, "labels")
        if labels.is_floating_point() or labels.is_complex():
            raise TypeError(f"`labels`: expected an integer dtype or torch.bool, got {labels.dtype}")
        first, table = self._table(labels.device)
        if labels.dtype in (torch.uint8, torch.bool):  # the table covers all of them
            index = labels.to(torch.int32).sub_(first)
        else:
            index = labels.to(torch.int64).sub(first).clamp_(0, len(table) - 1)
        out = table.index_select(0, index.flatten()).view(labels.shape)
        if self.unknown == "error" and out.numel() and int(out.min()) == _UNKNOWN:
            wrong = torch.unique(labels.to(torch.int64)[out == _UNKNOWN])  # 16 bits first: not indexed by torch 2.9
            some = ", ".join(str(int(value)) for value in wrong[:5]) + (", ..." if len(wrong) > 5 else "")
            raise ValueError(f"`labels`: expected ids of {self}, got {some}")
        return out

    def _table(self, device: torch.device) -> tuple[int, Tensor]:
        """The id of the first entry, and the classes; the entries at both ends stand for all ids beyond."""
        first, last = min(self.ids, default=0), max(self.ids, default=0)
        first, last = min(first, 0) - 1, max(last, 255) + 1
        tables: dict[torch.device, Tensor] = vars(self)["_tables"]
        if device not in tables:
            other = _UNKNOWN if self.unknown == "error" else self.ignore_index
            tables[device] = torch.tensor([self.ids.get(i, other) for i in range(first, last + 1)], device=device)
        return first, tables[device]

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.classes)

    def synthia_subset(self, size: Literal[16, 13]) -> tuple[int, ...]:
        """The classes over which mIoU-16 and mIoU-13 of SYNTHIA → Cityscapes are averaged.

        16 are the classes of Cityscapes without terrain, truck and train; 13 leaves out wall, fence and pole too.
        Compute one confusion matrix over all C classes, then average the IoU of these: pixels of them that were
        predicted as another class stay wrong.

        Args:
            size: 16 or 13.

        Returns:
            Ascending class numbers of this map, whatever its numbering.

        Raises:
            ValueError: ``size`` is neither, or this map lacks one of the classes.
        """
        if size not in (16, 13):
            raise ValueError(f"`size`: expected 16 or 13, got {size!r}")
        names = [name for name in _SYNTHIA_IDS if size == 16 or name not in _NOT_IN_13]
        missing = [name for name in names if name not in self.classes]
        if missing:
            raise ValueError(f"`size`: expected a label map with all {size} classes, this one lacks {missing}")
        return tuple(sorted(self.classes.index(name) for name in names))

    def to_rgb(self, labels: Tensor) -> Tensor:
        """Paint training labels with ``palette``, for viewing.

        Args:
            labels: (..., H, W), integer, translated already.

        Returns:
            (..., 3, H, W) uint8 on the device of ``labels``; black where ignored or not a class.

        Raises:
            TypeError: ``labels`` is not an integer tensor.
            ValueError: ``labels`` has less than two dimensions.
        """
        _checks.check_integer(labels, "labels")
        if labels.ndim < 2:
            raise ValueError(f"`labels`: expected (..., H, W), got {tuple(labels.shape)}")
        colours = torch.tensor([*self.palette, (0, 0, 0)], dtype=torch.uint8, device=labels.device)
        wide = labels.to(torch.int64)
        wide = torch.where((wide < 0) | (wide >= self.num_classes), self.num_classes, wide)
        return colours[wide].movedim(-1, -3).contiguous()

    @classmethod
    def cityscapes(cls, num_classes: Literal[19, 16] = 19, *, unknown: _Unknown = "error") -> LabelMap:
        """The ids in Cityscapes' ``*_labelIds.png`` and in GTA5's labels, -1 to 34.

        Args:
            num_classes: 19, the official train ids; or 16, those that SYNTHIA has, renumbered without gaps.
            unknown: as for the class.

        Returns:
            The map.

        Raises:
            ValueError: ``num_classes`` or ``unknown`` is none of those listed.
        """
        names = _trained_names(num_classes)
        return cls._named({label.label_id: label.name for label in _TRAINED}, names, _CITYSCAPES_IDS, unknown)

    @classmethod
    def synthia(cls, num_classes: Literal[19, 16] = 19, *, unknown: _Unknown = "error") -> LabelMap:
        """The ids in the labels of SYNTHIA-RAND-CITYSCAPES, 0 to 22.

        SYNTHIA has 16 of Cityscapes' 19 classes: terrain, truck and train never occur. Road marks, road works and
        parking slots are ignored. With both numberings, take the same one for Cityscapes.

        Args:
            num_classes: 19, Cityscapes' train ids, of which 9, 14 and 16 stay empty: networks have 19 outputs and
                compare with those trained on GTA5. Or 16, the same classes in the same order without gaps, as
                ADVENT has it. :meth:`synthia_subset` gives the classes to average over in either.
            unknown: as for the class.

        Returns:
            The map.

        Raises:
            ValueError: ``num_classes`` or ``unknown`` is none of those listed.
        """
        names = _trained_names(num_classes)
        return cls._named({label_id: name for name, label_id in _SYNTHIA_IDS.items()}, names, range(23), unknown)

    @classmethod
    def bdd100k(cls, num_classes: Literal[19, 16] = 19, *, unknown: _Unknown = "error") -> LabelMap:
        """Files that hold Cityscapes' train ids already, 0 to 18 and 255: BDD100K, and ``*_labelTrainIds.png``.

        Args:
            num_classes: 19; or 16, those that SYNTHIA has, renumbered without gaps.
            unknown: as for the class.

        Returns:
            The map.

        Raises:
            ValueError: ``num_classes`` or ``unknown`` is none of those listed.
        """
        names = _trained_names(num_classes)
        trained = {label.train_id: label.name for label in _TRAINED}
        return cls._named(trained, names, (*trained, IGNORE_INDEX), unknown)

    @classmethod
    def streets(cls, *, unknown: _Unknown = "error") -> LabelMap:
        """Cityscapes' ids to the 13 classes of :class:`SyntheticStreets`, to read what its ``export`` wrote.

        Args:
            unknown: as for the class.

        Returns:
            The map.

        Raises:
            ValueError: ``unknown`` is none of those listed.
        """
        ids = dict.fromkeys(_CITYSCAPES_IDS, IGNORE_INDEX)
        ids.update((label_id, number) for number, label_id in enumerate(STREETS_TO_ID))
        return cls(ids, SyntheticStreets.classes, SyntheticStreets.palette, unknown)

    @classmethod
    def voc(cls, *, unknown: _Unknown = "error") -> LabelMap:
        """PASCAL VOC's 21 classes, the background (0) included; 255, the band around objects, is ignored.

        Args:
            unknown: as for the class.

        Returns:
            The map.

        Raises:
            ValueError: ``unknown`` is none of those listed.
        """
        ids = {number: number for number in range(len(_VOC_CLASSES))} | {IGNORE_INDEX: IGNORE_INDEX}
        return cls(ids, _VOC_CLASSES, tuple(_voc_colour(number) for number in range(len(_VOC_CLASSES))), unknown)

    @classmethod
    def _named(cls, names: Mapping[int, str], kept: Sequence[str], known: Iterable[int], unknown: _Unknown) -> LabelMap:
        """Cityscapes' classes: the ids of the names that are kept, and all others that are known, ignored."""
        ids = dict.fromkeys(known, IGNORE_INDEX)
        ids.update((label_id, kept.index(name)) for label_id, name in names.items() if name in kept)
        colours = {label.name: label.colour for label in _TRAINED}
        return cls(ids, kept, tuple(colours[name] for name in kept), unknown)


def _trained_names(num_classes: int) -> tuple[str, ...]:
    if num_classes not in (19, 16):
        raise ValueError(f"`num_classes`: expected 19 or 16, got {num_classes!r}")
    return tuple(label.name for label in _TRAINED if num_classes == 19 or label.name in _SYNTHIA_IDS)


def _voc_colour(number: int) -> _Colour:
    """VOC deals the bits of the class number to red, green and blue in turn, highest bit first."""
    red, green, blue = (sum((number >> 3 * bit + channel & 1) << 7 - bit for bit in range(3)) for channel in range(3))
    return red, green, blue


def _check_int(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}`: expected an int, got {type(value).__name__}")


def _checked_ids(ids: Mapping[int, int], num_classes: int, ignore_index: int) -> dict[int, int]:
    for label_id, number in ids.items():
        _check_int(label_id, "ids")
        _check_int(number, f"ids[{label_id}]")
        if not _LOWEST_ID <= label_id <= _HIGHEST_ID:
            raise ValueError(f"`ids`: expected ids in [{_LOWEST_ID}, {_HIGHEST_ID + 1}), got {label_id}")
        if not 0 <= number < num_classes and number != ignore_index:
            raise ValueError(
                f"`ids[{label_id}]`: expected a class in [0, {num_classes}) or ignore_index {ignore_index},"
                f" got {number}"
            )
    return {int(label_id): int(number) for label_id, number in ids.items()}


def _checked_palette(palette: Iterable[Sequence[int]], num_classes: int) -> tuple[_Colour, ...]:
    colours = [tuple(int(channel) for channel in colour) for colour in palette]
    if len(colours) != num_classes:
        raise ValueError(f"`palette`: expected {num_classes} colours, got {len(colours)}")
    out = []
    for colour in colours:
        if len(colour) != 3 or not 0 <= min(colour) <= max(colour) <= 255:
            raise ValueError(f"`palette`: expected colours of three values in [0, 255], got {colour}")
        out.append((colour[0], colour[1], colour[2]))
    return tuple(out)
