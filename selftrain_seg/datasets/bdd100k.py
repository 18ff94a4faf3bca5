"""BDD100K: American street scenes, labelled with Cityscapes' train ids."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from selftrain_seg._checks import check_choice
from selftrain_seg.datasets._flat import _FlatFolder
from selftrain_seg.datasets.label_map import LabelMap

__all__ = ["BDD100K"]


class BDD100K(_FlatFolder):
    """Read the semantic segmentation part of BDD100K, 7,000 + 1,000 + 2,000 images of 1280 × 720 pixels.

    ``root`` holds ``images/10k/{split}/*.jpg`` and, except for the test split, ``labels/sem_seg/masks/{split}/*.png``
    with train ids, 0 to 18 and 255.

    Args:
        root: the folder.
        split: ``"train"``, ``"val"`` or ``"test"``; the label files of the last are not published.
        labels: True reads the label files; with False, samples have no labels. A function, such as the read method of a
            store of pseudo-labels, replaces them: it takes a name and returns (H, W) integer training classes.
        label_map: from ids to training classes; by default :meth:`LabelMap.bdd100k`.
        transforms: a joint transform of torchvision v2, called with (image, labels), or with the image alone if
            ``labels=False``; None for none.

    Returns:
        ``dataset[index]`` is ``(image, labels)``: ``tv_tensors.Image`` uint8 (3, H, W) and ``tv_tensors.Mask``
        int64 (H, W), training classes or ``ignore_index``. With ``labels=False`` it is ``(image, name)``.

    Raises:
        TypeError: ``labels`` is neither a bool nor callable, or ``label_map`` is not a LabelMap.
        FileNotFoundError: a folder is missing or has no images, or an image has no label file.
        ValueError: ``split`` is none of those listed, or ``"test"`` with ``labels=True``; when a sample is read: its
            file is broken or of another kind or has an unknown id, or labels and image differ in size.
        IndexError: an index is out of range.

    Attributes:
        names: such as ``"0a0a0b1a-7c39d841"``, sorted.
        root: the folder, a Path.
        split: the argument.
        labels: the argument.
        label_map: the label map in use.
        left_out: (path, reason) for each file that the data set does not use.
        transforms: the argument; may be replaced.

    References:
        Yu et al., BDD100K: A Diverse Driving Dataset for Heterogeneous Multitask Learning, CVPR 2020,
        arXiv:1805.04687.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> from selftrain_seg.datasets import BDD100K
        >>> with tempfile.TemporaryDirectory() as root:
        ...     os.makedirs(os.path.join(root, "images/10k/test"))
        ...     path = os.path.join(root, "images/10k/test/ac6d4f42-00000000.jpg")
        ...     Image.fromarray(np.zeros((2, 4, 3), np.uint8)).save(path)
        ...     image, name = BDD100K(root, "test", labels=False)[0]
        >>> name, tuple(image.shape)
        ('ac6d4f42-00000000', (3, 2, 4))
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Literal["train", "val", "test"] = "train",
        *,
        labels: bool | Callable[[str], Tensor] = True,
        label_map: LabelMap | None = None,
        transforms: Callable[..., Any] | None = None,
    ) -> None:
        check_choice(split, "split", ("train", "val", "test"))
        if split == "test" and labels is True:
            raise ValueError("`labels`: expected False or a function for the split 'test', which has no label files")
        self.split = split
        path = Path(root)
        images = (path / "images" / "10k" / split, (".jpg", ".jpeg"))
        masks = path / "labels" / "sem_seg" / "masks" / split
        super().__init__(path, images, masks, labels, label_map, LabelMap.bdd100k, transforms)
