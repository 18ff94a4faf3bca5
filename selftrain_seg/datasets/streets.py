"""The synthetic benchmark: synthetic streets in two domains, drawn on demand."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, SupportsIndex

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from selftrain_seg._checks import check_choice, check_count
from selftrain_seg.datasets import _export
from selftrain_seg.datasets._streets_scene import DOMAINS, SPLITS, Sample, render
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["SyntheticStreets"]

_MINIMUM_SIZE = (16, 32)
_LENGTHS = {("source", "train"): 1000, ("target", "train"): 500, ("source", "val"): 200, ("target", "val"): 200}


class SyntheticStreets(Dataset[tuple[Tensor, Tensor]]):
    """Draw street scenes with dense labels, in a game-like source domain and a camera-like target domain.

    A small benchmark for unsupervised domain adaptation that needs no download. Both domains show the same kind of
    street: one vanishing point, 13 of the Cityscapes classes. Images of the target are paler, hazier, flatter and
    noisier and have other colours, by a severity drawn from U(0.5, 1) per image.

    Each sample is a pure function of ``(seed, domain, split, index, size)``, computed on access with exactly rounded
    arithmetic, so its bytes are the same on every machine and for any number of workers. No scene occurs in two domains
    or splits. If the aspect ratio is kept, ``size`` changes the resolution but not the scene.

    Percentages of labelled pixels in the source domain: road 31, sidewalk 9.8, building 26, fence 2.2, pole 1.6, light
    0.7, sign 0.7, vegetation 8.6, sky 8.9, person 1.5, rider 0.5, car 7.2, bicycle 1.3. The target has 28 of road, 12
    of sky and a third more people. About 3.5 % of all pixels are ignored: bands around some objects, and in some images
    the bonnet of the recording car.

    Args:
        domain: ``"source"`` or ``"target"``.
        split: ``"train"`` or ``"val"``.
        size: (height, width) in pixels, at least (16, 32). Scenes are designed for a width of about twice the height;
            small classes are hard to see below the default.
        length: number of samples; by default 1000 for source-train, 500 for target-train, 200 for val of both. A
            shorter data set is a prefix of a longer one.
        seed: at least 0; each seed gives another data set with the same statistics.

    Returns:
        ``dataset[index]`` is ``(image, labels)``: float32 (3, H, W) in [0, 1], a multiple of 1/255, and int64
        (H, W) with values 0 to 12, or 255 where ignored. Negative indices count from the end.

    Raises:
        ValueError: ``domain`` or ``split`` is none of those listed; ``size`` is not two numbers or too small;
            ``length`` is below 1 or ``seed`` below 0.
        TypeError: ``size``, ``length`` or ``seed`` is not made of integers.
        IndexError: an index is out of range.

    Attributes:
        classes: the 13 class names, in the order of the labels.
        palette: their RGB colours, those of Cityscapes.
        rare: labels of the small classes: fence, pole, light, sign, person, rider, bicycle.
        num_classes: 13.
        ignore_index: 255.

    Example:
        >>> from selftrain_seg.datasets import SyntheticStreets
        >>> streets = SyntheticStreets("target", "val", length=8)
        >>> image, labels = streets[0]
        >>> len(streets), tuple(image.shape), tuple(labels.shape)
        (8, (3, 64, 128), (64, 128))
        >>> [streets.classes[c] for c in labels.unique().tolist() if c != streets.ignore_index][:3]
        ['road', 'sidewalk', 'building']
    """

    classes: ClassVar[tuple[str, ...]] = (
        "road",
        "sidewalk",
        "building",
        "fence",
        "pole",
        "light",
        "sign",
        "vegetation",
        "sky",
        "person",
        "rider",
        "car",
        "bicycle",
    )
    palette: ClassVar[tuple[tuple[int, int, int], ...]] = (
        (128, 64, 128),
        (244, 35, 232),
        (70, 70, 70),
        (190, 153, 153),
        (153, 153, 153),
        (250, 170, 30),
        (220, 220, 0),
        (107, 142, 35),
        (70, 130, 180),
        (220, 20, 60),
        (255, 0, 0),
        (0, 0, 142),
        (119, 11, 32),
    )
    rare: ClassVar[tuple[int, ...]] = (3, 4, 5, 6, 9, 10, 12)
    num_classes: ClassVar[int] = 13
    ignore_index: ClassVar[int] = IGNORE_INDEX

    def __init__(
        self,
        domain: Literal["source", "target"] = "source",
        split: Literal["train", "val"] = "train",
        *,
        size: tuple[int, int] = (64, 128),
        length: int | None = None,
        seed: int = 0,
    ) -> None:
        check_choice(domain, "domain", DOMAINS)
        check_choice(split, "split", SPLITS)
        if length is not None:
            check_count(length, "length")
        check_count(seed, "seed", 0)
        self.domain = domain
        self.split = split
        self.size = _checked_size(size)
        self.seed = int(seed)
        self._length = _LENGTHS[domain, split] if length is None else int(length)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: SupportsIndex) -> tuple[Tensor, Tensor]:
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"`index`: expected a value in [{-len(self)}, {len(self)}), got {number}")
        sample = self._sample(number % len(self))
        image = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))
        return image.to(torch.float32).div_(255.0), torch.from_numpy(sample.labels).to(torch.int64)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.domain!r}, {self.split!r}, size={self.size}, "
            f"length={len(self)}, seed={self.seed})"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Such as ``"source/source_000000_000000"``, the names that :class:`Cityscapes` gives to exported samples."""
        return tuple(f"{self.domain}/{_export.frame(self.domain, index)}" for index in range(len(self)))

    def _sample(self, index: int) -> Sample:
        return render(self.seed, self.domain, self.split, index, self.size)

    def _samples(self) -> Iterator[Sample]:
        return (self._sample(index) for index in range(len(self)))

    def export(
        self,
        root: str | os.PathLike[str],
        layout: Literal["cityscapes", "gta5"] = "cityscapes",
        *,
        progress: bool = False,
    ) -> Path:
        """Write the samples as PNG files in the layout of a published data set.

        The images decode to exactly ``255 * image``. Both layouts work for both domains. Labels become Cityscapes ids
        (road 7, ..., bicycle 33), ignored pixels 0 ("unlabeled").

        ``"cityscapes"`` writes, with the domain as city,
        ``leftImg8bit/{split}/{city}/{city}_{index:06d}_000000_leftImg8bit.png`` and, under ``gtFine``,
        ``*_gtFine_labelIds.png``, ``*_gtFine_labelTrainIds.png`` (the official 19 train ids),
        ``*_gtFine_instanceIds.png`` (16 bits) and ``*_gtFine_color.png`` (RGBA); no polygons.
        Both splits and both domains can share one root.

        ``"gta5"`` writes ``images/{index + 1:05d}.png`` and ``labels/{index + 1:05d}.png``, the latter with a
        palette. The layout has no split and no domain, so each data set needs its own root.

        Existing files of these samples are overwritten, other files are kept. Every file is completed in a hidden
        ``.partial-*`` folder under ``root`` and then moved, the image after its labels, so an interrupted export leaves
        no broken file.

        Args:
            root: folder to write to; created if it does not exist.
            layout: ``"cityscapes"`` or ``"gta5"``.
            progress: show a progress bar, if tqdm is installed.

        Returns:
            ``root`` as a Path.

        Raises:
            ValueError: ``layout`` is none of those listed.

        Example:
            >>> import tempfile
            >>> from selftrain_seg.datasets import SyntheticStreets
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     root = SyntheticStreets("source", length=2).export(folder, "gta5")
            ...     sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
            ['images/00001.png', 'images/00002.png', 'labels/00001.png', 'labels/00002.png']
        """
        check_choice(layout, "layout", _export.LAYOUTS)
        path = Path(root)
        _export.export(self._samples(), len(self), path, layout, self.split, self.domain, progress)
        return path


def _checked_size(size: Any) -> tuple[int, int]:
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f"`size`: expected (height, width), got {size!r}")
    for value, name, minimum in zip(size, ("size[0]", "size[1]"), _MINIMUM_SIZE, strict=True):
        check_count(value, name, minimum)
    return int(size[0]), int(size[1])
