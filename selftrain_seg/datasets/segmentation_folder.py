"""A data set of your own images and masks."""

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

    Images may lie in folders of any depth below ``images``, as PNG, JPEG, TIFF, BMP, WebP or GIF with suffixes in any
    case. An image is named by its relative path without the suffix, such as ``"paris/0001"``. Its mask is
    ``paris/0001`` followed by ``mask_suffix``, below ``masks``, with any suffix of an image. If no stem occurs twice,
    the mask may lie in another subfolder. Masks may lie in the same folders as the images.

    Images of 8 bits stay uint8. Images of 16 bits become float32, scaled so that 65535 (or ``white``) is 1. Floating
    point becomes float32, unscaled. ``v2.ToDtype(torch.float32, scale=True)`` then brings all to one range. The EXIF
    orientation is applied to images and masks.

    Masks hold ids in one channel of 1 to 16 bits, read without scaling; palette indices; or colours. An opacity
    channel is dropped.

    Args:
        images: folder of the images.
        masks: folder of the masks; None for images without labels. A function, such as the read method of a store of
            pseudo-labels, takes a name and returns (H, W) integer training classes.
        label_map: maps the values in masks to training classes. It is required to read masks, and for
            ``num_classes``, ``classes`` and ``palette``.
        mask_suffix: what follows the stem of an image in the name of its mask, such as ``"_mask"``, or with the file
            suffix ``"_mask.png"``. Files with such names are not images, even if ``masks`` is None, unless masks have
            their own folder.
        pair: instead of ``mask_suffix``, a function that takes the name of an image and returns the path of its mask
            below ``masks``.
        names: the images to read; None for all. A text file with one name per line, a pattern such as ``"paris/*"``,
            or a list. A pattern is matched with names, or with names and suffixes if it ends in an image suffix, such
            as ``"*.jpg"``. Names in files and lists may have a suffix. They may omit the first folders, or have more
            folders in front, if only one image fits; a name in another folder is an error.
        unpaired: ``"error"`` raises an error if an image has no mask; ``"leave out"`` skips the image.
        channels: channels to return. 3, the default, repeats a single channel and drops an opacity channel; 1 converts
            colours to grey. Any other number must equal that of the files, including an opacity channel. A tuple picks
            channels, such as ``(3, 0, 1)``. None keeps all.
        white: the value that is scaled to 1 in images of 16 bits and more; by default 65535. For 12-bit cameras, use
            4095.
        read_masks: how to read masks. ``"auto"`` reads one channel as ids. It reads a palette by index if its colours
            agree with ``label_map`` or the label map has no colours, else by colour; and three channels by colour, or
            as ids if they are equal. ``"ids"`` reads one channel or palette indices and ignores the palette;
            ``"first"`` reads the first of several channels; ``"colours"`` reads colours.
        transforms: a joint transform of torchvision v2, called with (image, labels), or with the image alone without
            masks; None for none.

    Returns:
        ``dataset[index]`` is ``(image, labels)``: ``tv_tensors.Image`` uint8 or float32 (C, H, W) and
        ``tv_tensors.Mask`` int64 (H, W), training classes or ``ignore_index``. Without masks it is ``(image, name)``.

    Raises:
        TypeError: an argument has another type than listed.
        FileNotFoundError: a folder is missing or has no images, or the file ``names`` is missing.
        ValueError: an image has no mask; two files have the same name; a link leads to a folder that contains it; a
            name is unknown; when a sample is read: its file is broken, of another kind than expected or has an unknown
            id or colour, or mask and image differ in size.
        IndexError: an index is out of range.

    Attributes:
        names: names of the images, sorted.
        root: the folder of images, a Path.
        labels: True for files, False for none, or the function.
        label_map: the label map in use, or None.
        left_out: (path, reason) for each file below the folders that the data set does not use.
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
            raise ValueError("`pair`: expected either this or `mask_suffix`, got both")
        self._channels, self._white, self._reading = _checked_channels(channels), white, read_masks
        folder = Path(images)
        labels: Labels = masks if callable(masks) else masks is not None
        place = None if masks is None or callable(masks) else Path(masks)
        check_label_arguments(labels, label_map)
        if label_map is None and place is not None:
            raise ValueError(
                "`label_map`: expected a label map to read masks, got None; make one with LabelMap.binary(), "
                "LabelMap.from_names({0: ...}) or LabelMap.load('classes.json')"
            )
        found, left_out = find_images(folder, place, mask_suffix)
        everything = found
        if names is not None:
            found = select_names(found, names)
            left_out += [(path, "not in `names`") for name, path in everything.items() if name not in found]
        paired: dict[str, Path] = {}
        if place is not None:
            paired, strangers = find_masks(place, found, everything, mask_suffix, pair)
            left_out += strangers if names is None else []
            own = {*paired.values()}
            found = {name: path for name, path in found.items() if path not in own}  # `pair` may find masks there
            if not found:
                raise ValueError(
                    f"`pair`: expected paths of masks, got those of the images:"
                    f" {first_few(sorted(map(str, own)))}; masks in the folder of the images need different names"
                )
            without = [name for name in found if name not in paired]
            if without and (unpaired == "error" or not paired):
                what = f"{without[0]}{mask_suffix}" if pair is None else os.fspath(pair(without[0]))
                raise ValueError(
                    f"`masks`: {len(without)} of {len(found)} images have no mask: {first_few(without)}; expected"
                    f" {place / what}{'' if os.path.splitext(what)[1] else '.png (or another suffix)'};"
                    f" there are {first_few(list_tree(place, 'masks')) or 'no files'}."
                    " Set `mask_suffix` or `pair` if masks have other names, `names` to select images,"
                    ' `unpaired="leave out"` to skip images without a mask, or `masks=None` to do without masks'
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
