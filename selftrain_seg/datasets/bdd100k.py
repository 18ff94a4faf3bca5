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
    """Read the semantic segmentation part of BDD100K, 7,000 + 1,000 + 2,000 pictures of 1280 × 720 pixels.

    ``root`` holds ``images/10k/{split}/*.jpg`` and, but for the test split, ``labels/sem_seg/masks/{split}/*.png``
    with train ids, 0 to 18 and 255.

    Args:
        root: the folder.
        split: ``"train"``, ``"val"`` or ``"test"``; for the last, nobody has the label files.
        labels: True reads the label files. False needs none of them. A function, such as the reading method of a
            store of pseudo-labels, is given a name and returns its (H, W) integer labels, training classes
            already, in place of the files.
        label_map: from ids to training classes; by default :meth:`LabelMap.bdd100k`.
        transforms: called with (image, labels), or with the image alone where ``labels=False``; any joint
            transform of torchvision v2. Without it samples are as read.

    Returns:
        ``dataset[index]`` is ``(image, labels)``: ``tv_tensors.Image`` uint8 (3, H, W) and ``tv_tensors.Mask``
        int64 (H, W), training classes or ``ignore_index``. With ``labels=False`` it is ``(image, name)``.

    Raises:
        TypeError: ``labels`` is neither a bool nor callable, ``label_map`` is not a LabelMap.
        FileNotFoundError: a folder is missing or has no images, or an image has no label file.
        ValueError: ``split`` is none of those listed, or ``"test"`` with ``labels=True``; for a sample, naming the
            file: it is broken or of another kind, has an unknown id, or labels and image differ in size.
        IndexError: an index past either end.

    Attributes:
        names: such as ``"0a0a0b1a-7c39d841"``, sorted.
        root: the folder, a Path.
        split: the argument.
        labels: the argument.
        label_map: the label map in use.
        left_out: (path, why) for each file beside the images that was not taken.
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
