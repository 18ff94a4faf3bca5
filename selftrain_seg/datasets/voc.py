"""PASCAL VOC 2012 with the additional labels of SBD, for semi-supervised training."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from selftrain_seg.datasets._files import check_not_empty, check_present, list_files
from selftrain_seg.datasets._folder import _Folder, checked_label_map
from selftrain_seg.datasets._masks import MaskFile, read_mat
from selftrain_seg.datasets.label_map import LabelMap

__all__ = ["VOCSegmentation"]

_OWN = ("train", "val", "trainval")  # the splits that VOC itself labels
_AUGMENTED = "train_aug"
_LISTS = {_AUGMENTED: ("train_aug", "trainaug")}  # both file names are in use


class _Source(NamedTuple):
    """A folder of label files."""

    folder: Path
    suffix: str
    files: dict[str, Path]


class VOCSegmentation(_Folder):
    """Read PASCAL VOC 2012, 1,464 train and 1,449 val images, or 10,582 with the labels of SBD.

    ``root`` is the folder ``VOC2012``, or a folder that holds it or ``VOCdevkit/VOC2012``. Images are in
    ``JPEGImages/*.jpg``, labels in ``SegmentationClass/*.png``, split files in ``ImageSets/Segmentation/*.txt``.

    The labels of ``"train_aug"`` come from ``SegmentationClassAug/*.png``, the folder that is commonly distributed. If
    it is missing, they come from ``SegmentationClass`` and then from SBD's ``cls/*.mat`` (which needs scipy). The names
    are listed in ``train_aug.txt`` or ``trainaug.txt`` beside the other split files. If both are missing, they are all
    names that have labels and are not in ``val.txt``.

    To train on 1/106, 1/50, 1/20 or 1/8 of it (100, 212, 529 or 1,323 images), pass a published split file as
    ``split``, or use :meth:`draw_labelled`.

    Args:
        root: the folder.
        split: ``"train"``, ``"val"``, ``"trainval"``, ``"train_aug"``, or the path of a split file. Each of its
            lines starts with a name or a path that ends in one (``/JPEGImages/2007_000032.jpg``); the rest of the
            line is ignored. Its labels are searched as for ``"train_aug"``.
        sbd: the folder ``dataset`` of SBD (benchmark_RELEASE), which holds ``cls``; None if you do not have it.
        labels: True reads the label files; with False, samples have no labels. A function, such as the read method of a
            store of pseudo-labels, replaces them: it takes a name and returns (H, W) integer training classes.
        label_map: from ids to training classes; by default :meth:`LabelMap.voc`.
        transforms: a joint transform of torchvision v2, called with (image, labels), or with the image alone if
            ``labels=False``; None for none.

    Returns:
        ``dataset[index]`` is ``(image, labels)``: ``tv_tensors.Image`` uint8 (3, H, W) and ``tv_tensors.Mask``
        int64 (H, W), training classes or ``ignore_index``. With ``labels=False`` it is ``(image, name)``.
        Image sizes differ, so batches need a transform that crops or resizes.

    Raises:
        TypeError: ``labels`` is neither a bool nor callable, or ``label_map`` is not a LabelMap.
        FileNotFoundError: a folder, the split file, or an image or label file of the split is missing.
        ValueError: a split file is empty or has a name twice; when a sample is read: its file is broken or of another
            kind or has an unknown id, or labels and image differ in size.
        ModuleNotFoundError: when a sample is read: its labels are in a ``.mat`` file and scipy is not installed.
        IndexError: an index is out of range.

    Attributes:
        names: such as ``"2007_000032"``; sorted, regardless of the order in the split file.
        root: the folder ``VOC2012``, a Path.
        split: the argument.
        labels: the argument.
        label_map: the label map in use.
        left_out: (path, reason) for each file that the data set does not use.
        transforms: the argument; may be replaced.

    References:
        Everingham et al., The PASCAL Visual Object Classes Challenge 2012 (VOC2012).
        Hariharan et al., Semantic Contours from Inverse Detectors, ICCV 2011.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> from selftrain_seg.datasets import VOCSegmentation
        >>> with tempfile.TemporaryDirectory() as root:
        ...     os.mkdir(os.path.join(root, "JPEGImages"))
        ...     split = os.path.join(root, "mine.txt")
        ...     for number in range(16):
        ...         path = os.path.join(root, "JPEGImages", f"2007_{number:06d}.jpg")
        ...         Image.fromarray(np.zeros((2, 4, 3), np.uint8)).save(path)
        ...         with open(split, "a") as file:
        ...             print(f"2007_{number:06d}", file=file)
        ...     dataset = VOCSegmentation(root, split, labels=False)
        >>> labelled, unlabelled = dataset.draw_labelled(8, seed=0)
        >>> labelled, len(unlabelled)
        ([7, 9], 14)
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str | os.PathLike[str] = "train",
        *,
        sbd: str | os.PathLike[str] | None = None,
        labels: bool | Callable[[str], Tensor] = True,
        label_map: LabelMap | None = None,
        transforms: Callable[..., Any] | None = None,
    ) -> None:
        label_map = checked_label_map(labels, label_map, LabelMap.voc)
        self.split = split
        path = _find(Path(root))
        sources = _sources(path, split, sbd)
        images = path / "JPEGImages"
        names = _split_names(path / "ImageSets" / "Segmentation", split, sources)
        left_out: list[tuple[Path, str]] = []
        there = list_files(images, ".jpg", ".jpeg", left_out=left_out)
        check_present({name: images / f"{name}.jpg" for name in names}, there)
        labelled: dict[str, Path] = {}
        for source in reversed(sources):  # the preferred source last
            labelled |= source.files
        if labels is True:
            if not sources:
                raise FileNotFoundError(f"`root`: expected labels in {path / 'SegmentationClass'}, found none")
            check_present({name: sources[0].folder / f"{name}{sources[0].suffix}" for name in names}, labelled)
        super().__init__(path, {name: there[name] for name in names}, labelled, labels, label_map, transforms, left_out)

    def _read_mask_file(self, path: Path) -> MaskFile:
        return read_mat(path) if path.suffix.lower() == ".mat" else super()._read_mask_file(path)


def _find(root: Path) -> Path:
    places = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    for place in places:
        if (place / "JPEGImages").is_dir():
            return place
    raise FileNotFoundError(f"`root`: expected a folder JPEGImages in one of {', '.join(map(str, places))}, found none")


def _sources(root: Path, split: str | os.PathLike[str], sbd: str | os.PathLike[str] | None) -> tuple[_Source, ...]:
    """The existing folders of labels, preferred first; ``sbd`` must exist."""
    folders = [root / "SegmentationClass", root / "SegmentationClassAug"]
    places = [(folder, ".png") for folder in (folders if split in _OWN else reversed(folders)) if folder.is_dir()]
    if sbd is not None:
        places.append((Path(sbd) / "cls", ".mat"))
    return tuple(_Source(folder, suffix, list_files(folder, suffix)) for folder, suffix in places)


def _split_names(folder: Path, split: str | os.PathLike[str], sources: tuple[_Source, ...]) -> list[str]:
    if split not in (*_OWN, _AUGMENTED):
        if not Path(split).is_file():
            known = ", ".join(map(repr, (*_OWN, _AUGMENTED)))
            raise FileNotFoundError(f"`split`: expected one of {known} or the path of a split file, got {str(split)!r}")
        return _listed(Path(split))
    paths = [folder / f"{name}.txt" for name in _LISTS.get(str(split), (str(split),))]
    for path in paths:
        if path.is_file():
            return _listed(path)
    if split != _AUGMENTED:
        raise FileNotFoundError(f"`split`: expected a file {paths[0]}, found none")
    names = frozenset[str]().union(*(source.files for source in sources)) - set(_listed(folder / "val.txt"))
    check_not_empty(sorted(names), folder, "train_aug.txt or trainaug.txt, or labels beyond those of val.txt")
    return sorted(names)


def _listed(path: Path) -> list[str]:
    """The names in a split file, sorted."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(f"`split`: expected a file {path}, found none") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"`split`: expected text in UTF-8 in {path} ({error})") from error
    names = sorted(os.path.splitext(line.split()[0].rpartition("/")[2])[0] for line in lines if line.strip())
    if not names:
        raise ValueError(f"`split`: expected names in {path}, found none")
    for name, following in pairwise(names):
        if name == following:
            raise ValueError(f"`split`: expected every name once in {path}; {name!r} occurs twice")
    return names
