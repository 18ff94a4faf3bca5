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
    """Read GTA5 (Playing for Data), 24,966 images of about 1914 × 1052 pixels.

    ``root`` holds ``images/*.png`` and ``labels/*.png``. Labels are Cityscapes' ids as palette indices, as
    distributed, or Cityscapes' colours as RGB; a palette of other colours is an error. A colour shared by several ids
    means the trained class, if there is one. In some copies a few labels differ in size from their images;
    :meth:`verify` names them.

    Args:
        root: the folder.
        labels: True reads the label files; with False, samples have no labels. A function, such as the read method of a
            store of pseudo-labels, replaces them: it takes a name and returns (H, W) integer training classes.
        label_map: from ids to training classes; by default :meth:`LabelMap.cityscapes`.
        transforms: a joint transform of torchvision v2, called with (image, labels), or with the image alone if
            ``labels=False``; None for none.

    Returns:
        ``dataset[index]`` is ``(image, labels)``: ``tv_tensors.Image`` uint8 (3, H, W) and ``tv_tensors.Mask``
        int64 (H, W), training classes or ``ignore_index``. With ``labels=False`` it is ``(image, name)``.

    Raises:
        TypeError: ``labels`` is neither a bool nor callable, or ``label_map`` is not a LabelMap.
        FileNotFoundError: a folder is missing or has no images, or an image has no label file.
        ValueError: when a sample is read: its file is broken or of another kind or has an unknown id or colour, or
            labels and image differ in size.
        IndexError: an index is out of range.

    Attributes:
        names: such as ``"00001"``, sorted.
        root: the folder, a Path.
        labels: the argument.
        label_map: the label map in use.
        left_out: (path, reason) for each file that the data set does not use.
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
