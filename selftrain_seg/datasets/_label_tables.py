"""Classes, ids and colours of the published data sets."""

from __future__ import annotations

from collections.abc import Iterable

from selftrain_seg.datasets._cityscapes_ids import CITYSCAPES_LABELS
from selftrain_seg.types import IGNORE_INDEX

Colour = tuple[int, int, int]

TRAINED = sorted(
    (label for label in CITYSCAPES_LABELS if label.train_id != IGNORE_INDEX), key=lambda label: label.train_id
)
CITYSCAPES_IDS = (-1, *(label.label_id for label in CITYSCAPES_LABELS))  # -1 is Cityscapes' license plate

# Colour in a file -> label id. If several ids share a colour, a trained class wins (car over license plate), then the
# smaller id. GTA5 has its own colour for "static".
CITYSCAPES_COLOURS: dict[Colour, int] = {
    label.colour: label.label_id
    for label in sorted(CITYSCAPES_LABELS, key=lambda label: (label.train_id, label.label_id), reverse=True)
} | {(20, 20, 20): 4}

# SYNTHIA-RAND-CITYSCAPES. Its other ids: 0 void, 13 parking slot, 14 road works, 16 terrain, 18 truck,
# 20 train, 22 lane marking; of these 13, 16, 18 and 20 never occur.
SYNTHIA_IDS = {
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
NOT_IN_13 = ("wall", "fence", "pole")

VOC_CLASSES = (
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

VOC_BORDER = (224, 224, 192)  # the band around objects, 255


def trained_names(num_classes: int) -> tuple[str, ...]:
    if num_classes not in (19, 16):
        raise ValueError(f"`num_classes`: expected 19 or 16, got {num_classes!r}")
    return tuple(label.name for label in TRAINED if num_classes == 19 or label.name in SYNTHIA_IDS)


def voc_colour(number: int) -> Colour:
    """VOC distributes the bits of the class number over red, green and blue in turn, from the highest bit."""
    red, green, blue = (sum((number >> 3 * bit + channel & 1) << 7 - bit for bit in range(3)) for channel in range(3))
    return red, green, blue


def drawn_colours(names: Iterable[str], taken: Iterable[Colour]) -> dict[str, Colour]:
    """Choose a colour for every name, all different and not taken: black for the background, else VOC's next."""
    used = {*taken, (0, 0, 0)}
    free = (colour for colour in map(voc_colour, range(1, 1 << 24)) if colour not in used)
    taken = set(taken)
    return {name: (0, 0, 0) if name == "background" and (0, 0, 0) not in taken else next(free) for name in names}
