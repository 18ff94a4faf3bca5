"""Cityscapes: European street scenes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from selftrain_seg._checks import check_choice
from selftrain_seg.datasets._files import check_present, check_some, list_files, list_folders
from selftrain_seg.datasets._folder import _Folder, checked
from selftrain_seg.datasets._pairing import take
from selftrain_seg.datasets.label_map import LabelMap

__all__ = ["Cityscapes"]

_SPLITS = {"fine": ("train", "val", "test"), "coarse": ("train", "val", "train_extra")}
_KINDS = {"label": "labelIds", "train": "labelTrainIds"}


class Cityscapes(_Folder):
    """Read Cityscapes, pictures of 2048 × 1024 pixels: 2,975 train, 500 val, 1,525 test, 19,998 train_extra.

    ``root`` holds ``leftImg8bit/{split}/{city}/*_leftImg8bit.png`` and, for labels,
    ``gtFine/{split}/{city}/*_gtFine_labelIds.png`` or the same under ``gtCoarse``. Every city is read. The label
    files that come with the test split are blank: all their pixels are ignored.

    Args:
        root: the folder.
        split: ``"train"``, ``"val"``, ``"test"`` or ``"train_extra"``.
        mode: ``"fine"`` for gtFine, which has no train_extra, or ``"coarse"`` for gtCoarse, which has no test.
        ids: ``"label"`` for ``*_labelIds.png``, or ``"train"`` for ``*_labelTrainIds.png``, which not every copy has.
        labels: True reads the label files. False needs none of them. A function, such as the reading method of a
            store of pseudo-labels, is given a name and returns its (H, W) integer labels, training classes
            already, in place of the files.
        names: the images to take, all by default: a text file with a name in each line, such as the published lists
            of labelled and unlabelled images of DST-CBC and DMT, a pattern such as ``"bonn/*"``, or a list.
        label_map: from ids to training classes; by default :meth:`LabelMap.cityscapes`, or for ``ids="train"``
            :meth:`LabelMap.bdd100k`.
        transforms: called with (image, labels), or with the image alone where ``labels=False``; any joint
            transform of torchvision v2. Without it samples are as read.

    Returns:
        ``dataset[index]`` is ``(image, labels)``: ``tv_tensors.Image`` uint8 (3, H, W) and ``tv_tensors.Mask``
        int64 (H, W), training classes or ``ignore_index``. With ``labels=False`` it is ``(image, name)``.

    Raises:
        TypeError: ``labels`` is neither a bool nor callable, ``label_map`` is not a LabelMap.
        FileNotFoundError: a folder is missing or has no images, an image has no label file, or ``names`` is no file.
        ValueError: ``split``, ``mode`` or ``ids`` is none of those listed, or has no such split while
            ``labels=True``; a name is unknown; for a sample, naming the file: it is broken or of another kind, has an
            unknown id (train ids have: 255), or labels and image differ in size.
        IndexError: an index past either end.

    Attributes:
        names: such as ``"frankfurt/frankfurt_000000_000294"``, sorted.
        root: the folder, a Path.
        split: the argument.
        mode: the argument.
        ids: the argument.
        labels: the argument.
        label_map: the label map in use.
        left_out: (path, why) for each file beside the images that was not taken.
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
        label_map = checked(labels, label_map, LabelMap.cityscapes if ids == "label" else LabelMap.bdd100k)
        if labels is True and split not in _SPLITS[mode]:
            raise ValueError(f"`mode`: expected one with labels for the split {split!r}, got {mode!r}")
        self.split = split
        self.mode = mode
        self.ids = ids
        path = Path(root)
        folder = "gtFine" if mode == "fine" else "gtCoarse"
        images, ending = path / "leftImg8bit" / split, f"_{folder}_{_KINDS[ids]}.png"
        masks = path / folder / split
        left_out: list[tuple[Path, str]] = []
        found = _files(images, "_leftImg8bit.png", left_out)
        check_some(found, images, "images, */*_leftImg8bit.png")
        if names is not None:
            everything, found = found, take(found, names)
            left_out += [(path, "not in `names`") for name, path in everything.items() if name not in found]
        wanted = {name: masks / f"{name}{ending}" for name in found}
        if labels is True:
            there = _files(masks, ending)
            check_present(wanted, there)
            wanted |= {name: there[name] for name in wanted}
        super().__init__(path, found, wanted, labels, label_map, transforms, left_out)


def _files(folder: Path, ending: str, left_out: list[tuple[Path, str]] | None = None) -> dict[str, Path]:
    """``"{city}/{name}"`` -> path of all files that end in ``ending``, sorted."""
    found = {
        f"{city}/{name}": path
        for city in list_folders(folder)
        for name, path in list_files(folder / city, ending, left_out=left_out).items()
    }
    return dict(sorted(found.items()))
