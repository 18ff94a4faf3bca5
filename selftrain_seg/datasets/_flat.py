"""Data sets of one folder of images and one of labels, files of a pair of the same name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from selftrain_seg.datasets._files import check_present, check_some, list_files
from selftrain_seg.datasets._folder import Labels, _Folder, checked
from selftrain_seg.datasets.label_map import LabelMap

_Place = tuple[Path, str]  # a folder, and what its files end in


class _FlatFolder(_Folder):
    """Names are those of the images; labels without an image are left alone."""

    def __init__(
        self,
        root: Path,
        images: _Place,
        masks: _Place,
        labels: Labels,
        label_map: LabelMap | None,
        default: Callable[[], LabelMap],
        transforms: Callable[..., Any] | None,
    ) -> None:
        label_map = checked(labels, label_map, default)
        self._images, self._masks = images, masks
        names = list_files(*images)
        check_some(names, images[0], f"images, *{images[1]}")
        super().__init__(root, names, labels, label_map, transforms)
        if labels is True:
            there = set(list_files(*masks))
            check_present([self._label_path(name) for name in names], [name in there for name in names])

    def _image_path(self, name: str) -> Path:
        folder, suffix = self._images
        return folder / (name + suffix)

    def _label_path(self, name: str) -> Path:
        folder, suffix = self._masks
        return folder / (name + suffix)
