"""Cityscapes: European street scenes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from selftrain_seg._checks import check_choice
from selftrain_seg.datasets._files import check_not_empty, check_present, list_files, list_folders
from selftrain_seg.datasets._folder import _Folder, checked_label_map
from selftrain_seg.datasets._pairing import select_names
from selftrain_seg.datasets.label_map import LabelMap

__all__ = ["Cityscapes"]

_SPLITS = {"fine": ("train", "val", "test"), "coarse": ("train", "val", "train_extra")}
_KINDS = {"label": "labelIds", "train": "labelTrainIds"}


class Cityscapes(_Folder):
    """Read Cityscapes, images of 2048 × 1024 pixels: 2,975 train, 500 val, 1,525 test, 19,998 train_extra.

    ``root`` holds ``leftImg8bit/{split}/{city}/*_leftImg8bit.png`` and, for labels,
    ``gtFine/{split}/{city}/*_gtFine_labelIds.png`` or the same under ``gtCoarse``. All cities are read. The published
    label files of the test split are blank: all their pixels are ignored.

    Args:
        root: the folder.
        split: ``"train"``, ``"val"``, ``"test"`` or ``"train_extra"``.
        mode: ``"fine"`` for gtFine, which has no train_extra, or ``"coarse"`` for gtCoarse, which has no test.
        ids: ``"label"`` for ``*_labelIds.png``, or ``"train"`` for ``*_labelTrainIds.png``, which some copies lack.
        labels: True reads the label files; with False, samples have no labels. A function, such as the read method of a
            store of pseudo-labels, replaces them: it takes a name and returns (H, W) integer training classes.
        names: the images to read; None for all. A text file with one name per line, such as the published lists of
            labelled and unlabelled images of DST-CBC and DMT; a pattern such as ``"bonn/*"``; or a list.
        label_map: from ids to training classes; by default :meth:`LabelMap.cityscapes`, or for ``ids="train"``
            :meth:`LabelMap.bdd100k`.
        transforms: a joint transform of torchvision v2, called with (image, labels), or with the image alone if
            ``labels=False``; None for none.

    Returns:
        ``dataset[index]`` is ``(image, labels)``: ``tv_tensors.Image`` uint8 (3, H, W) and ``tv_tensors.Mask``
        int64 (H, W), training classes or ``ignore_index``. With ``labels=False`` it is ``(image, name)``.

    Raises:
        TypeError: ``labels`` is neither a bool nor callable, or ``label_map`` is not a LabelMap.
        FileNotFoundError: a folder is missing or has no images, an image has no label file, or the file ``names`` is
            missing.
        ValueError: ``split``, ``mode`` or ``ids`` is none of those listed; ``mode`` has no labels for ``split``; a
            name is unknown; when a sample is read: its file is broken or of another kind or has an unknown id (as
            255 in files of train ids), or labels and image differ in size.
        IndexError: an index is out of range.

    Attributes:
        names: such as ``"frankfurt/frankfurt_000000_000294"``, sorted.
        root: the folder, a Path.
        split: the argument.
        mode: the argument.
        ids: the argument.
        labels: the argument.
        label_map: the label map in use.
        left_out: (path, reason) for each file that the data set does not use.
        transforms: the argument; may be replaced.

    References:
        Cordts et al., The Cityscapes Dataset for Semantic Urban Scene Understanding, CVPR 2016, arXiv:1604.01685.

    Example:
        >>> import tempfile
        >>> from selftrain_seg.datasets import Cityscapes, SyntheticStreets
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = SyntheticStreets("target", "val", length=2).export(folder)
        ...     image, labels = Cityscapes(root, "val")[0]
        ...     image, name = Cityscapes(root, "val", labels=False)[1]
        >>> tuple(image.shape), tuple(labels.shape), name
        ((3, 64, 128), (64, 128), 'target/target_000001_000000')
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Literal["train", "val", "test", "train_extra"] = "train",
        *,
        mode: Literal["fine", "coarse"] = "fine",
        ids: Literal["label", "train"] = "label",
        labels: bool | Callable[[str], Tensor] = True,
        names: str | os.PathLike[str] | Sequence[str] | None = None,
        label_map: LabelMap | None = None,
        transforms: Callable[..., Any] | None = None,
    ) -> None:
        check_choice(split, "split", ("train", "val", "test", "train_extra"))
        check_choice(mode, "mode", ("fine", "coarse"))
        check_choice(ids, "ids", tuple(_KINDS))
        label_map = checked_label_map(labels, label_map, LabelMap.cityscapes if ids == "label" else LabelMap.bdd100k)
        if labels is True and split not in _SPLITS[mode]:
            raise ValueError(f"`mode`: expected a mode with labels for the split {split!r}, got {mode!r}")
        self.split = split
        self.mode = mode
        self.ids = ids
        path = Path(root)
        folder = "gtFine" if mode == "fine" else "gtCoarse"
        images, ending = path / "leftImg8bit" / split, f"_{folder}_{_KINDS[ids]}.png"
        masks = path / folder / split
        left_out: list[tuple[Path, str]] = []
        found = _files(images, "_leftImg8bit.png", left_out)
        check_not_empty(found, images, "images, */*_leftImg8bit.png")
        if names is not None:
            everything, found = found, select_names(found, names)
            left_out += [(path, "not in `names`") for name, path in everything.items() if name not in found]
        wanted = {name: masks / f"{name}{ending}" for name in found}
        if labels is True:
            there = _files(masks, ending)
            check_present(wanted, there)
            wanted |= {name: there[name] for name in wanted}
        super().__init__(path, found, wanted, labels, label_map, transforms, left_out)


def _files(folder: Path, ending: str, left_out: list[tuple[Path, str]] | None = None) -> dict[str, Path]:
    """Map ``"{city}/{name}"`` -> path for all files that end in ``ending``, sorted."""
    found = {
        f"{city}/{name}": path
        for city in list_folders(folder)
        for name, path in list_files(folder / city, ending, left_out=left_out).items()
    }
    return dict(sorted(found.items()))
