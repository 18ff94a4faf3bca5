"""Read all files of a data set; check that they are intact and that the labels mean what is expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from selftrain_seg.datasets._label_tables import TRAINED
from selftrain_seg.datasets._masks import MaskFile, Reading, values_of
from selftrain_seg.datasets._progress import with_progress
from selftrain_seg.datasets._report import BrokenFilesError, FolderReport
from selftrain_seg.datasets.streets import SyntheticStreets

if TYPE_CHECKING:
    from selftrain_seg.datasets._folder import _Folder
    from selftrain_seg.datasets._images import Picture
    from selftrain_seg.datasets.label_map import LabelMap

_MIN_LABELLED = 0.05  # of all pixels; scribbles and coarse labels have more
_TRAIN_IDS = {*range(len(TRAINED)), 255}
_STREET_NAMES = {label.name for label in TRAINED} | {*SyntheticStreets.classes}


def verify(folder: _Folder, progress: bool, images: bool, most: int | None, check_meaning: bool) -> FolderReport:
    """See ``_Folder.verify``."""
    count = len(folder) if most is None else min(most, len(folder))
    indices = [place * len(folder) // count for place in range(count)]
    tally = _Tally(folder, images)
    problems = [
        (index, problem)
        for index in with_progress(indices, count, progress, "sample")
        for problem in tally.problems(folder.names[index])
    ]
    if problems:
        raise BrokenFilesError(problems)
    report = tally.report(count)
    if check_meaning and folder.labels is True:
        _check_labels(report, folder._required_label_map)
    return report


class _Tally:
    """Counts over the samples checked so far."""

    def __init__(self, folder: _Folder, images: bool) -> None:
        self.folder, self.images = folder, images
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.channels: Counter[int] = Counter()
        self.bits: Counter[int] = Counter()
        self.turned = 0
        self.low, self.high = float("inf"), float("-inf")
        classes = 0 if folder.label_map is None or folder.labels is False else folder.label_map.num_classes
        self.pixels, self.images_with, self.ignored = np.zeros(classes, np.int64), np.zeros(classes, np.int64), 0
        self.ids: set[int] = set()

    def problems(self, name: str) -> Iterator[str]:
        """Check a sample; yield a message for each problem."""
        folder, picture, labels = self.folder, None, None
        try:
            if self.images:
                picture = folder._read_picture(name)
                self._count_image(picture)
                if picture.image.is_floating_point() and not bool(picture.image.isfinite().all()):
                    wrong = int(picture.image.isfinite().logical_not().sum())
                    yield f"{folder._image_path(name)}: {wrong} values are NaN or infinite"
        except (OSError, ValueError, TypeError) as error:
            yield str(error)
        try:
            if folder.labels is not False:
                labels = self._read_labels(name)
        except (OSError, ValueError, TypeError) as error:
            yield str(error)
        except LookupError as error:  # from a `labels` function; its text is only the key
            yield f"`labels({name!r})`: {error!r}"
        if picture is not None and labels is not None:
            try:
                folder._check_sizes(name, picture.image.shape[-2:], labels, picture.turned)
            except ValueError as error:
                yield str(error)

    def _read_labels(self, name: str) -> Tensor:
        folder = self.folder
        if callable(folder.labels):
            labels = folder._read_labels(name)
        else:
            path = folder._label_path(name)
            mask = folder._read_mask_file(path)
            labels = folder._to_classes(path, mask)
            self.ids |= _ids(mask) if _holds_ids(mask, folder._reading) else set()
        self._count_labels(name, labels)
        return labels

    def _count_image(self, picture: Picture) -> None:
        height, width = picture.image.shape[-2:]
        self.sizes[int(height), int(width)] += 1
        self.channels[picture.channels] += 1
        self.bits[picture.bits] += 1
        self.turned += picture.turned != 1
        if picture.image.numel():
            low, high = picture.image.aminmax()
            self.low, self.high = min(self.low, float(low)), max(self.high, float(high))

    def _count_labels(self, name: str, labels: Tensor) -> None:
        label_map = self.folder.label_map
        if label_map is None:
            return
        classes = label_map.num_classes
        ignored = labels == label_map.ignore_index
        if bool((((labels < 0) | (labels >= classes)) & ~ignored).any()):
            raise ValueError(
                f"`labels({name!r})`: expected classes in [0, {classes}) or ignore_index {label_map.ignore_index},"
                f" got {int(labels.min())} to {int(labels.max())}"
            )
        counts = np.asarray(torch.bincount(labels.masked_fill(ignored, classes).flatten(), minlength=classes + 1))
        self.pixels += counts[:classes]
        self.images_with += counts[:classes] > 0
        self.ignored += int(counts[classes])

    def report(self, samples: int) -> FolderReport:
        folder = self.folder
        return FolderReport(
            samples,
            self.sizes,
            self.channels,
            self.bits,
            self.turned,
            (self.low, self.high) if self.low <= self.high else None,
            () if not len(self.pixels) else folder.classes,
            tuple(map(int, self.pixels)),
            tuple(map(int, self.images_with)),
            self.ignored,
            tuple(sorted(self.ids)),
            tuple(folder.left_out),
        )


def _ids(mask: MaskFile) -> set[int]:
    """The values in the only or first channel of a file."""
    return {*values_of(mask.pixels if mask.pixels.ndim == 2 else mask.pixels[..., 0])}


def _holds_ids(mask: MaskFile, reading: Reading) -> bool:
    """Whether the first channel holds ids, not the red of colours."""
    if mask.pixels.ndim == 2 or reading == "first":
        return True
    channels = mask.pixels[..., :-1] if mask.alpha else mask.pixels
    return bool((channels[..., :1] == channels[..., 1:]).all())


def _expects_label_ids(label_map: LabelMap) -> bool:
    """Whether the map expects label ids of street scenes, not train ids."""
    trained = [label_id for label_id, number in label_map.ids.items() if number != label_map.ignore_index]
    return len(trained) >= 10 and max(trained) >= len(TRAINED) and _STREET_NAMES.issuperset(label_map.classes)


def train_ids_hint(mask: MaskFile, label_map: LabelMap) -> str:
    """A hint for the error about unknown ids, if they look like train ids; else empty."""
    if _expects_label_ids(label_map) and 255 in (ids := _ids(mask)) and ids <= _TRAIN_IDS and len(ids) > 2:
        return "; these look like Cityscapes' train ids, which LabelMap.bdd100k() reads"
    return ""


def _check_labels(report: FolderReport, label_map: LabelMap) -> None:
    labelled = report.labelled
    if labelled is None:
        return
    share = f"{100 * labelled:.1f} % of the pixels have a class"
    accept = "verify(check_meaning=False) accepts them"
    if _expects_label_ids(label_map) and report.ids and _TRAIN_IDS.issuperset(report.ids):
        raise ValueError(
            f"`label_map`: expected label ids, up to {max(label_map.ids)}, but only ids from {min(report.ids)} to"
            f" {max(report.ids)} occur in {report.samples} files, which look like Cityscapes' train ids ({share});"
            f" read those with LabelMap.bdd100k(); {accept}\n{report}"
        )
    if labelled < _MIN_LABELLED:
        raise ValueError(
            f"`label_map`: nearly all labels are ignored: {share}; ids in the files: {_listed_ids(report.ids)};"
            f" use the label map of these files; {accept}\n{report}"
        )


def _listed_ids(ids: tuple[int, ...]) -> str:
    return ", ".join(map(str, ids[:20])) + (", ..." if len(ids) > 20 else "")
