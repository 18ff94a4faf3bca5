"""SYNTHIA-RAND-CITYSCAPES: rendered street scenes with their own label ids."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from selftrain_seg.datasets._files import IMAGE_SUFFIXES
from selftrain_seg.datasets._flat import _FlatFolder
from selftrain_seg.datasets._masks import Reading
from selftrain_seg.datasets.label_map import LabelMap

__all__ = ["SYNTHIA"]


class SYNTHIA(_FlatFolder):
    """Read SYNTHIA-RAND-CITYSCAPES, 9,400 images of 1280 × 760 pixels.

    ``root`` holds ``RGB/*.png`` and ``GT/LABELS/*.png``. As distributed, label files have three 16-bit channels: the
    id, the number of the object, and an unused one. Files of 8 bits or one channel are read as well.

    Args:
        root: the folder.
        labels: True reads the label files; with False, samples have no labels. A function, such as the read method of a
            store of pseudo-labels, replaces them: it takes a name and returns (H, W) integer training classes.
        label_map: from ids to training classes; by default :meth:`LabelMap.synthia`, Cityscapes' 19
            train ids, three of which stay empty. ``LabelMap.synthia(16)`` has no gaps.
        transforms: a joint transform of torchvision v2, called with (image, labels), or with the image alone if
            ``labels=False``; None for none.

    Returns:
        ``dataset[index]`` is ``(image, labels)``: ``tv_tensors.Image`` uint8 (3, H, W) and ``tv_tensors.Mask``
        int64 (H, W), training classes or ``ignore_index``. With ``labels=False`` it is ``(image, name)``.

    Raises:
        TypeError: ``labels`` is neither a bool nor callable, or ``label_map`` is not a LabelMap.
        FileNotFoundError: a folder is missing or has no images, or an image has no label file.
        ValueError: when a sample is read: its file is broken or of another kind or has an unknown id, or labels and
            image differ in size.
        IndexError: an index is out of range.

    Attributes:
        names: such as ``"0000000"``, sorted.
        root: the folder, a Path.
        labels: the argument.
        label_map: the label map in use.
        left_out: (path, reason) for each file that the data set does not use.
        transforms: the argument; may be replaced.

    References:
        Ros et al., The SYNTHIA Dataset: A Large Collection of Synthetic Images for Semantic Segmentation of Urban
        Scenes, CVPR 2016.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> from selftrain_seg.datasets import SYNTHIA
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for folder, pixels in (("RGB", np.zeros((1, 4, 3), np.uint8)), ("GT/LABELS", [[3, 4, 19, 22]])):
        ...         os.makedirs(os.path.join(root, folder))
        ...         Image.fromarray(np.array(pixels, np.uint8)).save(os.path.join(root, folder, "0000000.png"))
        ...     image, labels = SYNTHIA(root)[0]
        >>> labels
        Mask([[  0,   1,  15, 255]])
    """

    _reading: Reading = "first"

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        labels: bool | Callable[[str], Tensor] = True,
        label_map: LabelMap | None = None,
        transforms: Callable[..., Any] | None = None,
    ) -> None:
        path = Path(root)
        images, masks = (path / "RGB", IMAGE_SUFFIXES), path / "GT" / "LABELS"
        super().__init__(path, images, masks, labels, label_map, LabelMap.synthia, transforms)
