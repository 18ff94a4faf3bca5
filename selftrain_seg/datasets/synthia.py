"""SYNTHIA-RAND-CITYSCAPES: rendered street scenes, labelled with ids of their own."""

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
    """Read SYNTHIA-RAND-CITYSCAPES, 9,400 pictures of 1280 × 760 pixels.

    ``root`` holds ``RGB/*.png`` and ``GT/LABELS/*.png``. As distributed, a label file has three channels of 16 bits
    with the id in the first (the second numbers the objects); 8 bits and single channels are read as well.

    Args:
        root: the folder.
        labels: True reads the label files. False needs none of them. A function, such as the reading method of a
            store of pseudo-labels, is given a name and returns its (H, W) integer labels, training classes
            already, in place of the files.
        label_map: from ids to training classes; by default :meth:`LabelMap.synthia`, Cityscapes' 19
            train ids of which three stay empty; ``LabelMap.synthia(16)`` numbers without gaps.
        transforms: called with (image, labels), or with the image alone where ``labels=False``; any joint
            transform of torchvision v2. Without it samples are as read.

    Returns:
        ``dataset[index]`` is ``(image, labels)``: ``tv_tensors.Image`` uint8 (3, H, W) and ``tv_tensors.Mask``
        int64 (H, W), training classes or ``ignore_index``. With ``labels=False`` it is ``(image, name)``.

    Raises:
        TypeError: ``labels`` is neither a bool nor callable, ``label_map`` is not a LabelMap.
        FileNotFoundError: a folder is missing or has no images, or an image has no label file.
        ValueError: for a sample, naming the file: it is broken or of another kind, has an unknown id, or labels and
            image differ in size.
        IndexError: an index past either end.

    Attributes:
        names: such as ``"0000000"``, sorted.
        root: the folder, a Path.
        labels: the argument.
        label_map: the label map in use.
        left_out: (path, why) for each file beside the images that was not taken.
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
