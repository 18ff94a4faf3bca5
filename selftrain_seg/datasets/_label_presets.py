"""Label maps of the published data sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

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
    voc_colour,
)
from selftrain_seg.datasets.streets import SyntheticStreets
from selftrain_seg.types import IGNORE_INDEX

if TYPE_CHECKING:
    from selftrain_seg.datasets.label_map import LabelMap

_Unknown = Literal["error", "ignore"]


class Presets:
    """The named constructors of ``LabelMap``, which has a file of its own for all else."""

    classes: Sequence[str]

    def synthia_subset(self, size: Literal[16, 13]) -> tuple[int, ...]:
        """The classes over which mIoU-16 and mIoU-13 of SYNTHIA → Cityscapes are averaged.

        16 are the classes of Cityscapes without terrain, truck and train; 13 leaves out wall, fence and pole too.
        Compute one confusion matrix over all C classes, then average the IoU of these: pixels of them that were
        predicted as another class stay wrong.

        Two conventions are in use for pixels of terrain, truck and train in the truth, and numbers of one are not
        comparable with those of the other. SAC and IAST count what is predicted there as wrong: take
        ``LabelMap.cityscapes()``. CBST, CRST and DT-ST ignore these pixels, which gives higher numbers: take
        ``LabelMap.cityscapes().ignoring("terrain", "truck", "train")``, or ``LabelMap.cityscapes(16)``. Predictions
        of 16 classes are brought to 19 by :meth:`LabelMap.numbers_in`.

        Args:
            size: 16 or 13.

        Returns:
            Ascending class numbers of this map, whatever its numbering.

        Raises:
            ValueError: ``size`` is neither, or this map lacks one of the classes.
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
        """The ids in Cityscapes' ``*_labelIds.png`` and in GTA5's labels, -1 to 34.

        Args:
            num_classes: 19, the official train ids; or 16, those that SYNTHIA has, renumbered without gaps.
            unknown: as for the class.

        Returns:
            The map.

        Raises:
            ValueError: ``num_classes`` or ``unknown`` is none of those listed.
        """
        names = trained_names(num_classes)
        out = _named({label.label_id: label.name for label in TRAINED}, names, CITYSCAPES_IDS, unknown)
        return out._with_colours(CITYSCAPES_COLOURS)

    @staticmethod
    def synthia(num_classes: Literal[19, 16] = 19, *, unknown: Literal["error", "ignore"] = "error") -> LabelMap:
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
        names = trained_names(num_classes)
        return _named({label_id: name for name, label_id in SYNTHIA_IDS.items()}, names, range(23), unknown)

    @staticmethod
    def bdd100k(num_classes: Literal[19, 16] = 19, *, unknown: Literal["error", "ignore"] = "error") -> LabelMap:
        """Cityscapes' train ids, 0 to 18 and 255, as in BDD100K and in ``Cityscapes(root, ids="train")``.

        Args:
            num_classes: 19; or 16, those that SYNTHIA has, renumbered without gaps.
            unknown: as for the class.

        Returns:
            The map.

        Raises:
            ValueError: ``num_classes`` or ``unknown`` is none of those listed.
        """
        names = trained_names(num_classes)
        trained = {label.train_id: label.name for label in TRAINED}
        out = _named(trained, names, (*trained, IGNORE_INDEX), unknown)
        return replace(out, colours=Presets.cityscapes(num_classes).colours)

    @staticmethod
    def streets(*, unknown: Literal["error", "ignore"] = "error") -> LabelMap:
        """Cityscapes' ids to the 13 classes of :class:`SyntheticStreets`, to read what its ``export`` wrote.

        Args:
            unknown: as for the class.

        Returns:
            The map.

        Raises:
            ValueError: ``unknown`` is none of those listed.
        """
        ids = dict.fromkeys(CITYSCAPES_IDS, IGNORE_INDEX)
        ids.update((label_id, number) for number, label_id in enumerate(STREETS_TO_ID))
        return _map(ids, SyntheticStreets.classes, SyntheticStreets.palette, unknown)._with_colours(CITYSCAPES_COLOURS)

    @staticmethod
    def voc(*, unknown: Literal["error", "ignore"] = "error") -> LabelMap:
        """PASCAL VOC's 21 classes, the background (0) included; 255, the band around objects, is ignored.

        Args:
            unknown: as for the class.

        Returns:
            The map.

        Raises:
            ValueError: ``unknown`` is none of those listed.
        """
        ids = {number: number for number in range(len(VOC_CLASSES))} | {IGNORE_INDEX: IGNORE_INDEX}
        palette = tuple(voc_colour(number) for number in range(len(VOC_CLASSES)))
        colours = {colour: number for number, colour in enumerate(palette)} | {VOC_BORDER: IGNORE_INDEX}
        return _map(ids, VOC_CLASSES, palette, unknown, colours=colours)


def _named(
    names: Mapping[int, str], kept: Sequence[str], known: Iterable[int], unknown: Literal["error", "ignore"]
) -> LabelMap:
    """Cityscapes' classes: the ids of the names that are kept, and all others that are known, ignored."""
    ids = dict.fromkeys(known, IGNORE_INDEX)
    ids.update((label_id, kept.index(name)) for label_id, name in names.items() if name in kept)
    colours = {label.name: label.colour for label in TRAINED}
    return _map(ids, kept, tuple(colours[name] for name in kept), unknown)


def _map(*arguments: Any, **options: Any) -> LabelMap:
    from selftrain_seg.datasets.label_map import LabelMap

    return LabelMap(*arguments, **options)
