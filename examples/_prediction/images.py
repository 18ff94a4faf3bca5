"""Images of a folder, in batches of one size."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from _data.checks import check_values
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from _prediction.options import in_options
from selftrain_seg.datasets import SegmentationFolder


class Item(NamedTuple):
    """An image, or the error that it gave.

    Attributes:
        name: name of the image.
        image: (C, H, W), uint8 or floating point in [0, 1]; None if the image cannot be read.
        error: the error; empty if there is none.
    """

    name: str
    image: Tensor | None
    error: str


def open_images(folder: Path, args: Namespace) -> SegmentationFolder:
    """Open a folder of images, without the masks of ``--mask-suffix`` that it may hold."""
    try:
        images = SegmentationFolder(folder, names=args.names, channels=args.channels, white=args.white)
        suffix = os.path.splitext(args.mask_suffix)[0]
        if suffix:
            names = [name for name in images.names if not name.endswith(suffix)]
            if not names:
                raise SystemExit(f"{folder}: by --mask-suffix {args.mask_suffix}, all files are masks")
            images = SegmentationFolder(folder, names=names, channels=args.channels, white=args.white)
    except (OSError, ValueError) as error:
        raise SystemExit(in_options(error)) from None
    return images


def read(images: SegmentationFolder, indices: Sequence[int], args: Namespace) -> Iterator[list[Item]]:
    """Yield images in order, in batches of one size. An image that cannot be read is a batch of its own."""
    loader = DataLoader(_Reader(images, indices), batch_size=None, num_workers=args.workers)
    batch: list[Item] = []
    for item in loader:
        if batch and (len(batch) == args.batch or item.image is None or item.image.shape != batch[0].image.shape):
            yield batch
            batch = []
        if item.image is None:
            yield [item]
        else:
            batch.append(item)
    if batch:
        yield batch


class _Reader(Dataset[Item]):
    def __init__(self, images: SegmentationFolder, indices: Sequence[int]) -> None:
        self.images, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Item:
        name = self.images.names[self.indices[index]]
        try:
            image = self.images[self.indices[index]][0].as_subclass(Tensor)
            check_values(image, self.images._image_path(name))
        except (OSError, ValueError) as error:
            return Item(name, None, in_options(error))
        return Item(name, image, "")
