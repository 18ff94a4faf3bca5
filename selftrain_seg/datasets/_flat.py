"""Data sets with one folder of images and one of labels, paired by file name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from selftrain_seg.datasets._files import check_not_empty, check_present, list_files
from selftrain_seg.datasets._folder import Labels, _Folder, checked_label_map
from selftrain_seg.datasets.label_map import LabelMap

_Place = tuple[Path, tuple[str, ...]]  # a folder, and the endings of its files


class _FlatFolder(_Folder):
    """Names are those of the images; labels without an image are listed in ``left_out``."""

    def __init__(
        self,
        root: Path,
        images: _Place,
        masks: Path,
        labels: Labels,
        label_map: LabelMap | None,
        default: Callable[[], LabelMap],
        transforms: Callable[..., Any] | None,
    ) -> None:
        label_map = checked_label_map(labels, label_map, default)
        folder, endings = images
        left_out: list[tuple[Path, str]] = []
        found = list_files(folder, *endings, left_out=left_out)
        check_not_empty(found, folder, f"images, *{endings[0]}")
        wanted = {name: masks / f"{name}.png" for name in found}
        if labels is True:
            there = list_files(masks, ".png")
            check_present(wanted, there)
            wanted |= {name: there[name] for name in wanted}
            left_out += [(path, "a mask without an image") for name, path in there.items() if name not in found]
        super().__init__(root, found, wanted, labels, label_map, transforms, left_out)
