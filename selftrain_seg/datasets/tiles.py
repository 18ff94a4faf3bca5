"""Cut large images into tiles."""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple, SupportsIndex

from torch import Tensor
from torch.utils.data import Dataset

from selftrain_seg import _checks
from selftrain_seg._progress import with_progress
from selftrain_seg.datasets._content import picture_size
from selftrain_seg.datasets._folder import _Folder
from selftrain_seg.datasets._report import FolderReport
from selftrain_seg.datasets.label_map import LabelMap

__all__ = ["Tiles"]


class _Tile(NamedTuple):
    """The place of a tile.

    Attributes:
        image: index of the image in the data set.
        top: row of the first pixel.
        left: column of the first pixel.
        height: height of the part that the image covers.
        width: width of the part that the image covers.
    """

    image: int
    top: int
    left: int
    height: int
    width: int


class Tiles(Dataset[tuple[Any, Any]]):
    """Cut the images of a data set of files into tiles of one size.

    Tiles cover every pixel. Neighbours overlap by ``overlap``; the last tile of a row or column overlaps by more,
    because it ends with the image. Images smaller than a tile are padded at the right and bottom with 0, and their
    labels with ``ignore_index``.

    The constructor reads only the sizes of the images. Reading a tile decodes its whole image. The last image is kept,
    so consecutive tiles of an image decode it once. For large images, shuffle the images rather than the tiles, or cut
    the files themselves.

    Args:
        dataset: a data set of files, such as :class:`SegmentationFolder`, without ``transforms``.
        size: (height, width) of a tile, or one number for both.
        overlap: minimum overlap (height, width) of neighbours, or one number for both; smaller than ``size``.
        labels: a function, such as the read method of a store of pseudo-labels, that replaces the labels of
            ``dataset``: it takes the name of a tile and returns (height, width) integer training classes.
        transforms: a joint transform of torchvision v2, called with (image, labels), or with the image alone without
            labels; None for none.
        progress: show a progress bar while sizes are read, if tqdm is installed.

    Returns:
        ``tiles[index]`` is ``(image, labels)`` or ``(image, name)`` as in ``dataset``, with images (C, height, width)
        and labels (height, width).

    Raises:
        TypeError: ``dataset`` is not a data set of files, or ``labels`` is not a function.
        ValueError: ``dataset`` has transforms; ``size`` is below 1; ``overlap`` is negative or not below ``size``;
            a file is not an image; when a sample is read: as for ``dataset``.
        IndexError: an index is out of range.

    Attributes:
        names: names of the tiles, ``"{name of the image}@{top},{left}"``.
        places: (index of the image, top, left, height, width) for each tile; height and width of the part that the
            image covers.
        dataset: the argument.
        size: (height, width).
        transforms: the argument; may be replaced.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> from selftrain_seg.datasets import SegmentationFolder, Tiles
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Image.fromarray(np.zeros((80, 100, 3), np.uint8)).save(os.path.join(root, "field.png"))
        ...     tiles = Tiles(SegmentationFolder(root), 64, overlap=16)
        ...     image, name = tiles[3]
        >>> tiles.names, name, tuple(image.shape)
        (('field@0,0', 'field@0,36', 'field@16,0', 'field@16,36'), 'field@16,36', (3, 64, 64))
    """

    def __init__(
        self,
        dataset: _Folder,
        size: int | tuple[int, int],
        *,
        overlap: int | tuple[int, int] = 0,
        labels: Callable[[str], Tensor] | None = None,
        transforms: Callable[..., Any] | None = None,
        progress: bool = False,
    ) -> None:
        if not isinstance(dataset, _Folder):
            raise TypeError(f"`dataset`: expected a data set of files, got {type(dataset).__name__}")
        if dataset.transforms is not None:
            raise ValueError(
                "`dataset`: expected a data set without transforms, because they would be applied before tiles are cut"
            )
        if labels is not None and not callable(labels):
            raise TypeError(f"`labels`: expected a function of the name of a tile, got {type(labels).__name__}")
        self.dataset, self.labels, self.transforms = dataset, labels, transforms
        self.size, shared = _pair(size, "size", 1), _pair(overlap, "overlap", 0)
        if shared[0] >= self.size[0] or shared[1] >= self.size[1]:
            raise ValueError(f"`overlap`: expected less than size {self.size}, got {shared}")
        self._sizes = tuple(
            picture_size(dataset._image_path(name))
            for name in with_progress(dataset.names, len(dataset), progress, "image")
        )
        self.places = tuple(
            _Tile(index, top, left, min(self.size[0], height - top), min(self.size[1], width - left))
            for index, (height, width) in enumerate(self._sizes)
            for top, left in product(_starts(height, self.size[0], shared[0]), _starts(width, self.size[1], shared[1]))
        )
        self.names = tuple(f"{dataset.names[place.image]}@{place.top},{place.left}" for place in self.places)
        self._last: tuple[int, Any, Any] | None = None

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: SupportsIndex) -> tuple[Any, Any]:
        from torchvision import tv_tensors

        number = self._checked_index(index)
        place = self.places[number]
        if self._last is None or self._last[0] != place.image:
            self._last = (place.image, *self._read(place.image))
        _, image, labels = self._last
        image = tv_tensors.Image(self._cut(image, place, 0))
        if self.labels is not None:
            labels = self.labels(self.names[number])
            _checks.check_integer(labels, f"labels({self.names[number]!r})")
            if tuple(labels.shape) != self.size:
                raise ValueError(
                    f"`labels({self.names[number]!r})`: expected (H, W) = {self.size}, got {tuple(labels.shape)}"
                )
            labels = tv_tensors.Mask(labels.long())
        elif self.dataset.labels is not False:
            labels = tv_tensors.Mask(self._cut(labels, place, self.dataset.ignore_index))
        else:
            return (image if self.transforms is None else self.transforms(image)), self.names[number]
        if self.transforms is None:
            return image, labels
        transformed: tuple[Any, Any] = self.transforms(image, labels)
        return transformed

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_last": None}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.dataset!r}, {len(self)} tiles of {self.size[0]} × {self.size[1]})"

    @property
    def label_map(self) -> LabelMap | None:
        """The label map of the data set, or None."""
        return self.dataset.label_map

    @property
    def num_classes(self) -> int:
        """Number of classes C of the label map."""
        return self.dataset.num_classes

    @property
    def classes(self) -> tuple[str, ...]:
        """The C class names of the label map."""
        return self.dataset.classes

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """The C colours of the label map."""
        return self.dataset.palette

    @property
    def ignore_index(self) -> int:
        """The label of pixels without a class."""
        return self.dataset.ignore_index

    def verify(
        self, *, progress: bool = False, images: bool = True, most: int | None = None, check_meaning: bool = True
    ) -> FolderReport:
        """Check the whole images and masks; see ``verify`` of the data set for arguments, result and errors."""
        return self.dataset.verify(progress=progress, images=images, most=most, check_meaning=check_meaning)

    def masks(self) -> Dataset[Tensor]:
        """Return the label maps of the tiles alone, in order, from the labels of ``dataset``. Images are not decoded.

        Returns:
            A data set of (height, width) int64 tensors.

        Raises:
            ValueError: the data set has no labels.
        """
        return _Masks(self, self.dataset.masks())

    def _checked_index(self, index: SupportsIndex) -> int:
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"`index`: expected a value in [{-len(self)}, {len(self)}), got {number}")
        return number % len(self)

    def _read(self, index: int) -> tuple[Tensor, Any]:
        """An image and its labels, or its name if the labels of tiles come from a function."""
        name = self.dataset.names[index]
        if self.labels is None:
            image, labels = self.dataset[index]
        else:
            image, labels = self.dataset._read_picture(name).image, name
        return image, labels

    def _cut(self, whole: Tensor, place: _Tile, fill: int) -> Tensor:
        part = whole[..., place.top : place.top + place.height, place.left : place.left + place.width].as_subclass(
            Tensor
        )
        if tuple(part.shape[-2:]) == self.size:
            return part.clone()  # a worker would send the whole image with a view
        out = part.new_full((*part.shape[:-2], *self.size), fill)
        out[..., : place.height, : place.width] = part
        return out


class _Masks(Dataset[Tensor]):
    """See ``Tiles.masks``."""

    def __init__(self, tiles: Tiles, masks: Dataset[Tensor]) -> None:
        self.tiles, self.masks = tiles, masks
        self._last: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: SupportsIndex) -> Tensor:
        place = self.tiles.places[self.tiles._checked_index(index)]
        if self._last is None or self._last[0] != place.image:
            whole = self.masks[place.image]
            dataset = self.tiles.dataset
            dataset._check_sizes(dataset.names[place.image], self.tiles._sizes[place.image], whole)
            self._last = place.image, whole
        return self.tiles._cut(self._last[1], place, self.tiles.ignore_index)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_last": None}


def _starts(length: int, tile: int, shared: int) -> list[int]:
    """Offsets of the tiles along one side."""
    last = max(length - tile, 0)
    return [*range(0, last, tile - shared), last]


def _pair(value: Any, name: str, minimum: int) -> tuple[int, int]:
    values = (value, value) if not isinstance(value, (tuple, list)) else tuple(value)
    if len(values) != 2:
        raise ValueError(f"`{name}`: expected (height, width), got {value!r}")
    for number in values:
        _checks.check_count(number, name, minimum)
    return int(values[0]), int(values[1])
