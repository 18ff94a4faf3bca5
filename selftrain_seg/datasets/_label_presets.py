"""Label maps of the published data sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from selftrain_seg._palette import voc_colour
from selftrain_seg.datasets._export import STREETS_TO_ID
from selftrain_seg.datasets._label_tables import (
    CITYSCAPES_COLOURS,
    CITYSCAPES_IDS,
    NOT_IN_13,
    SYNTHIA_IDS,
    TRAINED,
    VOC_BORDER,
    VOC_CLASSES,
    trained_names,
)
from selftrain_seg.datasets.streets import SyntheticStreets
from selftrain_seg.types import IGNORE_INDEX

if TYPE_CHECKING:
    from selftrain_seg.datasets.label_map import LabelMap

_Unknown = Literal["error", "ignore"]


class Presets:
    """The constructors of ``LabelMap`` for published data sets."""

    classes: Sequence[str]

    def synthia_subset(self, size: Literal[16, 13]) -> tuple[int, ...]:
        """Return the classes over which mIoU-16 and mIoU-13 of SYNTHIA → Cityscapes are averaged.

        The 16 classes are those of Cityscapes without terrain, truck and train; the 13 also lack wall, fence and pole.
        Compute one confusion matrix over all C classes, then average the IoU of these classes. Their pixels then
        count as wrong if they were predicted as another class.

        Two conventions exist for pixels whose true class is terrain, truck or train, and their numbers are not
        comparable. SAC and IAST count predictions there as wrong: use ``LabelMap.cityscapes()`` for the truth. CBST,
        CRST and DT-ST ignore these pixels, which gives higher numbers: use
        ``LabelMap.cityscapes().ignoring("terrain", "truck", "train")`` or ``LabelMap.cityscapes(16)``.
        :meth:`LabelMap.numbers_in` converts predictions of 16 classes to 19.

        Args:
            size: 16 or 13.

        Returns:
            Ascending class numbers in this map.

        Raises:
            ValueError: ``size`` is neither 16 nor 13, or this map lacks one of the classes.
        """
        if size not in (16, 13):
            raise ValueError(f"`size`: expected 16 or 13, got {size!r}")
        names = [name for name in SYNTHIA_IDS if size == 16 or name not in NOT_IN_13]
        missing = [name for name in names if name not in self.classes]
        if missing:
            raise ValueError(f"`size`: expected a label map with all {size} classes, this one lacks {missing}")
        return tuple(sorted(self.classes.index(name) for name in names))

    @staticmethod
    def cityscapes(num_classes: Literal[19, 16] = 19, *, unknown: Literal["error", "ignore"] = "error") -> LabelMap:
        """Map the ids in Cityscapes' ``*_labelIds.png`` and in GTA5's labels, -1 to 34.

        Args:
            num_classes: 19, the official train ids; or 16, the classes of SYNTHIA, renumbered without gaps.
            unknown: as for :class:`LabelMap`.

        Returns:
            The map.

        Raises:
            ValueError: ``num_classes`` or ``unknown`` is none of those listed.
        """
        names = trained_names(num_classes)
        out = _cityscapes_classes({label.label_id: label.name for label in TRAINED}, names, CITYSCAPES_IDS, unknown)
        return out._with_colours(CITYSCAPES_COLOURS)

    @staticmethod
    def synthia(num_classes: Literal[19, 16] = 19, *, unknown: Literal["error", "ignore"] = "error") -> LabelMap:
        """Map the ids in the labels of SYNTHIA-RAND-CITYSCAPES, 0 to 22.

        SYNTHIA has 16 of Cityscapes' 19 classes: terrain, truck and train never occur. Lane markings, road works and
        parking slots are ignored. Use the same ``num_classes`` for Cityscapes.

        Args:
            num_classes: 19, Cityscapes' train ids, where 9, 14 and 16 stay empty, so networks have 19 outputs, as
                for GTA5; or 16, the same classes in the same order without gaps, as in ADVENT.
                :meth:`synthia_subset` returns the classes to average over for both.
            unknown: as for :class:`LabelMap`.

        Returns:
            The map.

        Raises:
            ValueError: ``num_classes`` or ``unknown`` is none of those listed.
        """
        names = trained_names(num_classes)
        return _cityscapes_classes(
            {label_id: name for name, label_id in SYNTHIA_IDS.items()}, names, range(23), unknown
        )

    @staticmethod
    def bdd100k(num_classes: Literal[19, 16] = 19, *, unknown: Literal["error", "ignore"] = "error") -> LabelMap:
        """Map Cityscapes' train ids, 0 to 18 and 255, as in BDD100K and in ``Cityscapes(root, ids="train")``.

        Args:
            num_classes: 19; or 16, the classes of SYNTHIA, renumbered without gaps.
            unknown: as for :class:`LabelMap`.

        Returns:
            The map.

        Raises:
            ValueError: ``num_classes`` or ``unknown`` is none of those listed.
        """
        names = trained_names(num_classes)
        trained = {label.train_id: label.name for label in TRAINED}
        out = _cityscapes_classes(trained, names, (*trained, IGNORE_INDEX), unknown)
        return replace(out, colours=Presets.cityscapes(num_classes).colours)

    @staticmethod
    def streets(*, unknown: Literal["error", "ignore"] = "error") -> LabelMap:
        """Map Cityscapes' ids to the 13 classes of :class:`SyntheticStreets`, to read what its ``export`` wrote.

        Args:
            unknown: as for :class:`LabelMap`.

        Returns:
            The map.

        Raises:
            ValueError: ``unknown`` is none of those listed.
        """
        ids = dict.fromkeys(CITYSCAPES_IDS, IGNORE_INDEX)
        ids.update((label_id, number) for number, label_id in enumerate(STREETS_TO_ID))
        return _label_map(ids, SyntheticStreets.classes, SyntheticStreets.palette, unknown)._with_colours(
            CITYSCAPES_COLOURS
        )

    @staticmethod
    def voc(*, unknown: Literal["error", "ignore"] = "error") -> LabelMap:
        """Map PASCAL VOC's 21 classes, including the background (0); 255, the band around objects, is ignored.

        Args:
            unknown: as for :class:`LabelMap`.

        Returns:
            The map.

        Raises:
            ValueError: ``unknown`` is none of those listed.
        """
        ids = {number: number for number in range(len(VOC_CLASSES))} | {IGNORE_INDEX: IGNORE_INDEX}
        palette = tuple(voc_colour(number) for number in range(len(VOC_CLASSES)))
        colours = {colour: number for number, colour in enumerate(palette)} | {VOC_BORDER: IGNORE_INDEX}
        return _label_map(ids, VOC_CLASSES, palette, unknown, colours=colours)


def _cityscapes_classes(
    names: Mapping[int, str], kept: Sequence[str], known: Iterable[int], unknown: Literal["error", "ignore"]
) -> LabelMap:
    """A map of Cityscapes' classes: ids of ``kept`` names become classes, other ``known`` ids are ignored."""
    ids = dict.fromkeys(known, IGNORE_INDEX)
    ids.update((label_id, kept.index(name)) for label_id, name in names.items() if name in kept)
    colours = {label.name: label.colour for label in TRAINED}
    return _label_map(ids, kept, tuple(colours[name] for name in kept), unknown)


def _label_map(*arguments: Any, **options: Any) -> LabelMap:
    from selftrain_seg.datasets.label_map import LabelMap

    return LabelMap(*arguments, **options)
