"""Write synthetic streets as PNG files laid out like the real data sets."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selftrain_seg.datasets._cityscapes_ids import CITYSCAPES_LABELS
from selftrain_seg.datasets._progress import with_progress
from selftrain_seg.datasets._streets_canvas import Bytes
from selftrain_seg.datasets._streets_scene import Sample
from selftrain_seg.types import IGNORE_INDEX

LAYOUTS = ("cityscapes", "gta5")

# class of SyntheticStreets -> Cityscapes id
STREETS_TO_ID = (7, 8, 11, 13, 17, 19, 20, 21, 23, 24, 25, 26, 33)

_LABEL_IDS = np.zeros(256, np.uint8)  # ignored pixels become 0, "unlabeled"
_LABEL_IDS[: len(STREETS_TO_ID)] = STREETS_TO_ID
_TRAIN_IDS = np.full(256, IGNORE_INDEX, np.uint8)  # by label id
_COLOURS = np.zeros((256, 3), np.uint8)  # by label id
for _label in CITYSCAPES_LABELS:
    _TRAIN_IDS[_label.label_id] = _label.train_id
    _COLOURS[_label.label_id] = _label.colour

Save = Callable[[Path, npt.NDArray[Any], "Bytes | None"], None]


def write_cityscapes(root: Path, split: str, city: str, index: int, sample: Sample, save: Save) -> None:
    """Write the five PNG files of one Cityscapes frame. The image is last: if it exists, the frame is complete."""
    stem = frame(city, index)
    truth = root / "gtFine" / split / city
    ids = _LABEL_IDS[sample.labels]
    alpha = np.full((*ids.shape, 1), 255, np.uint8)
    save(truth / f"{stem}_gtFine_labelIds.png", ids, None)
    save(truth / f"{stem}_gtFine_labelTrainIds.png", _TRAIN_IDS[ids], None)
    save(truth / f"{stem}_gtFine_instanceIds.png", instance_ids(ids, sample.instances), None)
    save(truth / f"{stem}_gtFine_color.png", np.concatenate((_COLOURS[ids], alpha), axis=2), None)
    save(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", sample.image, None)


def frame(city: str, index: int) -> str:
    """The name of a Cityscapes frame."""
    return f"{city}_{index:06d}_000000"


def write_gta5(root: Path, index: int, sample: Sample, save: Save) -> None:
    """Write the two PNG files of one GTA5 frame; labels have a palette, as distributed."""
    name = f"{index + 1:05d}.png"
    save(root / "labels" / name, _LABEL_IDS[sample.labels], _COLOURS)
    save(root / "images" / name, sample.image, None)


def instance_ids(ids: Bytes, objects: Bytes) -> npt.NDArray[np.uint16]:
    """Cityscapes' instance map: ``1000 id + n`` for the n-th object of a class with instances, else ``id``."""
    out = ids.astype(np.uint16)
    for label in CITYSCAPES_LABELS:
        if label.has_instances:
            mine = ids == label.label_id
            if mine.any():
                rank = np.zeros(256, np.uint16)
                seen = np.unique(objects[mine])
                rank[seen] = np.arange(len(seen))
                out[mine] = 1000 * label.label_id + rank[objects[mine]]
    return out


def export(
    samples: Iterable[Sample], count: int, root: Path, layout: str, split: str, city: str, progress: bool
) -> None:
    """Write every sample; each file appears complete or not at all."""
    from PIL import Image

    root.mkdir(parents=True, exist_ok=True)
    # Loaders list whole folders, so unfinished files go to a separate one.
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=root) as partial:
        unfinished = os.path.join(partial, "file.png")

        def save(path: Path, pixels: npt.NDArray[Any], palette: Bytes | None) -> None:
            image = Image.fromarray(pixels)
            if palette is not None:
                image.putpalette(palette.tobytes())
            image.save(unfinished)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(unfinished, path)

        for index, sample in enumerate(with_progress(samples, count, progress, "image")):
            if layout == "cityscapes":
                write_cityscapes(root, split, city, index, sample, save)
            else:
                write_gta5(root, index, sample, save)
