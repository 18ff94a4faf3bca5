"""Anybody's images and masks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.datasets._files import first_few, list_tree
from selftrain_seg.datasets._folder import Labels, _Folder, check_label_arguments
from selftrain_seg.datasets._pairing import find_images, find_masks, select_names
from selftrain_seg.datasets.label_map import LabelMap

__all__ = ["SegmentationFolder"]


class SegmentationFolder(_Folder):
    """Read your own images, with masks or without.

    Images lie anywhere below ``images``, in folders of any depth, as PNG, JPEG, TIFF, BMP, WebP or GIF with suffixes
    in any case. Their names are their paths below it without the suffix, such as ``"paris/0001"``. The mask of
    ``"paris/0001"`` is ``paris/0001`` and ``mask_suffix`` below ``masks``, with any suffix of an image; where no stem
    occurs twice, the folders in between need not be the same. Masks may lie among the images.

    Images of 8 bits stay uint8. Those of 16 bits become float32, 65535 (or ``white``) as 1; floating point stays as
    it is, as float32. ``v2.ToDtype(torch.float32, scale=True)`` then brings all to one range. EXIF orientations are
    applied, to images and masks.

    Masks hold ids in one channel of 1 to 16 bits, taken as they stand; indices of a palette; or colours. Opacity is
    left out.

    Args:
        images: a folder.
        masks: a folder; None for images without labels. A function, such as the reading method of a store of
            pseudo-labels, is given a name and returns its (H, W) integer labels, training classes already.
        label_map: from what masks hold to training classes; needed to read masks, and for
            ``num_classes``, ``classes`` and ``palette``.
        mask_suffix: what the stem of a mask has more than that of its image, such as ``"_mask"``; with a file suffix,
            such as ``"_mask.png"``, other files are no masks. Files of such names are never taken for images, without
            ``masks`` either, unless the masks have a folder of their own.
        pair: in place of ``mask_suffix``: a function that is given the name of an image and returns the path of its
            mask below ``masks``.
        names: the images to take, all by default: a text file with a name in each line, a pattern such as
            ``"paris/*"``, or a list. A pattern matches names; files with their suffix if it ends in one of an image,
            as ``"*.jpg"``. Names in files and lists may have a suffix, and no folders where the stem occurs once.
        unpaired: what an image without a mask is: an ``"error"``, or one to ``"leave out"``.
        channels: of the images given. 3, the default, repeats a single channel and leaves an opacity out; 1 makes
            colours grey. Any other number must be that of the files, opacity included. A tuple picks channels, such
            as ``(3, 0, 1)``. None keeps them all.
        white: the value that becomes 1 in images of 16 bits and more; by default 65535, of which cameras of 12 bits
            reach 4095.
        read_masks: ``"auto"`` reads one channel as ids, a palette by index if it agrees with the colours of
            ``label_map`` (or those have none) and else by colour, and three channels by colour, or as ids if they
            are equal. ``"ids"`` reads one channel or indices only, whatever the palette says, ``"first"`` the first
            of several channels, ``"colours"`` colours only.
        transforms: called with (image, labels), or with the image alone where there are none; any joint transform of
            torchvision v2. Without it samples are as read.

    Returns:
        ``dataset[index]`` is ``(image, labels)``: ``tv_tensors.Image`` uint8 or float32 (C, H, W) and
        ``tv_tensors.Mask`` int64 (H, W), training classes or ``ignore_index``. Without masks it is ``(image, name)``.

    Raises:
        TypeError: an argument is of another type than listed.
        FileNotFoundError: a folder is missing or has no images, ``names`` is no file.
        ValueError: an image has no mask, or two files have the same stem; a link leads in a circle; a name is
            unknown; for a sample, naming the file: it is broken, or of another kind than expected, has an unknown id
            or colour, or mask and image differ in size.
        IndexError: an index past either end.

    Attributes:
        names: of the images taken, sorted.
        root: the folder of images, a Path.
        labels: True for files, False for none, or the function.
        label_map: the label map in use, or None.
        left_out: (path, why) for each file below the folders that was not taken.
        transforms: the argument; may be replaced.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> from selftrain_seg.datasets import LabelMap, SegmentationFolder
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name, pixels in (("eye.JPG", np.zeros((2, 4, 3))), ("eye_mask.png", [[0, 0, 255, 0]] * 2)):
        ...         Image.fromarray(np.array(pixels, np.uint8)).save(os.path.join(root, name))
        ...     dataset = SegmentationFolder(root, root, label_map=LabelMap.binary("vessel"), mask_suffix="_mask")
        ...     image, labels = dataset[0]
        >>> dataset.names, tuple(image.shape), labels.tolist()
        (('eye',), (3, 2, 4), [[0, 0, 1, 0], [0, 0, 1, 0]])
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        masks: str | os.PathLike[str] | Callable[[str], Tensor] | None = None,
        *,
        label_map: LabelMap | None = None,
        mask_suffix: str = "",
        pair: Callable[[str], str | os.PathLike[str]] | None = None,
        names: str | os.PathLike[str] | Sequence[str] | None = None,
        unpaired: Literal["error", "leave out"] = "error",
        channels: int | Sequence[int] | None = 3,
        white: int | None = None,
        read_masks: Literal["auto", "ids", "first", "colours"] = "auto",
        transforms: Callable[..., Any] | None = None,
    ) -> None:
        _checks.check_choice(unpaired, "unpaired", ("error", "leave out"))
        _checks.check_choice(read_masks, "read_masks", ("auto", "ids", "first", "colours"))
        if white is not None:
            _checks.check_count(white, "white")
        if pair is not None and mask_suffix:
            raise ValueError("`pair`: expected this or `mask_suffix`, got both")
        self._channels, self._white, self._reading = _checked_channels(channels), white, read_masks
        folder = Path(images)
        labels: Labels = masks if callable(masks) else masks is not None
        place = None if masks is None or callable(masks) else Path(masks)
        check_label_arguments(labels, label_map)
        if label_map is None and place is not None:
            raise ValueError(
                "`label_map`: expected one to read masks, got None; LabelMap.binary(), LabelMap.from_names({0: ...})"
                " or LabelMap.load('classes.json') make one"
            )
        found, left_out = find_images(folder, place, mask_suffix)
        if names is not None:
            everything, found = found, select_names(found, names)
            left_out += [(path, "not in `names`") for name, path in everything.items() if name not in found]
        paired: dict[str, Path] = {}
        if place is not None:
            paired, strangers = find_masks(place, found, mask_suffix, pair)
            left_out += strangers if names is None else []
            own = {*paired.values()}
            found = {name: path for name, path in found.items() if path not in own}  # masks of a `pair` among images
            if not found:
                raise ValueError(
                    f"`pair`: expected paths of masks, got those of the images: {first_few(sorted(map(str, own)))}; masks"
                    " that lie among the images need names of their own"
                )
            without = [name for name in found if name not in paired]
            if without and (unpaired == "error" or not paired):
                what = f"{without[0]}{mask_suffix}" if pair is None else os.fspath(pair(without[0]))
                raise ValueError(
                    f"`masks`: {len(without)} of {len(found)} images have no mask: {first_few(without)}; expected"
                    f" {place / what}{'' if os.path.splitext(what)[1] else '.png (or another suffix)'};"
                    f" there are {first_few(list_tree(place, 'masks')) or 'no files'}."
                    " `mask_suffix` or `pair` says how masks are called, `names` which images to take,"
                    ' `unpaired="leave out"` takes those with a mask, `masks=None` does without'
                )
            left_out += [(found[name], "without a mask") for name in without]
            found = {name: path for name, path in found.items() if name in paired}
            left_out = [(path, why) for path, why in left_out if path not in own]
        super().__init__(folder, found, paired, labels, label_map, transforms, left_out)


def _checked_channels(channels: Any) -> int | tuple[int, ...] | None:
    if channels is None:
        return None
    if isinstance(channels, (tuple, list)):
        for number, channel in enumerate(channels):
            _checks.check_count(channel, f"channels[{number}]", 0)
        if not channels:
            raise ValueError("`channels`: expected at least one, got none")
        return tuple(channels)
    _checks.check_count(channels, "channels")
    return int(channels)
