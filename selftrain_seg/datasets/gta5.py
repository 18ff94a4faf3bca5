"""GTA5: street scenes from a game, labelled with the ids of Cityscapes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from selftrain_seg.datasets._files import IMAGE_SUFFIXES
from selftrain_seg.datasets._flat import _FlatFolder
from selftrain_seg.datasets._folder import checked_label_map
from selftrain_seg.datasets._label_tables import CITYSCAPES_COLOURS
from selftrain_seg.datasets.label_map import LabelMap

__all__ = ["GTA5"]


class GTA5(_FlatFolder):
    """Read GTA5 (Playing for Data), 24,966 pictures of about 1914 × 1052 pixels.

    ``root`` holds ``images/*.png`` and ``labels/*.png``. Labels hold Cityscapes' ids as palette indices, as
    distributed, or the colours of Cityscapes' palette as RGB; either is read, and a palette of other colours is
    refused. A colour that several ids share stands for the trained class, if there is one. In some copies a few
    labels differ in size from their images: :meth:`verify` names them.

    Args:
        root: the folder.
        labels: True reads the label files. False needs none of them. A function, such as the reading method of a
            store of pseudo-labels, is given a name and returns its (H, W) integer labels, training classes
            already, in place of the files.
        label_map: from ids to training classes; by default :meth:`LabelMap.cityscapes`.
        transforms: called with (image, labels), or with the image alone where ``labels=False``; any joint
            transform of torchvision v2. Without it samples are as read.

    Returns:
        ``dataset[index]`` is ``(image, labels)``: ``tv_tensors.Image`` uint8 (3, H, W) and ``tv_tensors.Mask``
        int64 (H, W), training classes or ``ignore_index``. With ``labels=False`` it is ``(image, name)``.

    Raises:
        TypeError: ``labels`` is neither a bool nor callable, ``label_map`` is not a LabelMap.
        FileNotFoundError: a folder is missing or has no images, or an image has no label file.
        ValueError: for a sample, naming the file: it is broken or of another kind, has an unknown id or colour, or
            labels and image differ in size.
        IndexError: an index past either end.

    Attributes:
        names: such as ``"00001"``, sorted.
        root: the folder, a Path.
        labels: the argument.
        label_map: the label map in use.
        left_out: (path, why) for each file beside the images that was not taken.
        transforms: the argument; may be replaced.

    References:
        Richter et al., Playing for Data: Ground Truth from Computer Games, ECCV 2016, arXiv:1608.02192.

    Example:
        >>> import tempfile
        >>> from selftrain_seg.datasets import GTA5, LabelMap, SyntheticStreets
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = SyntheticStreets("source", length=2).export(folder, "gta5")
        ...     dataset = GTA5(root, label_map=LabelMap.streets())
        ...     image, labels = dataset[0]
        >>> dataset.names, image.dtype, tuple(image.shape), labels.dtype, tuple(labels.shape)
        (('00001', '00002'), torch.uint8, (3, 64, 128), torch.int64, (64, 128))
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        labels: bool | Callable[[str], Tensor] = True,
        label_map: LabelMap | None = None,
        transforms: Callable[..., Any] | None = None,
    ) -> None:
        path = Path(root)
        images, masks = (path / "images", IMAGE_SUFFIXES), path / "labels"
        label_map = checked_label_map(labels, label_map, LabelMap.cityscapes)
        if not label_map.colours:
            label_map = label_map._with_colours(CITYSCAPES_COLOURS)
        super().__init__(path, images, masks, labels, label_map, LabelMap.cityscapes, transforms)
