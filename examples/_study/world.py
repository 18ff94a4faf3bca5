"""Images in memory: source, held-out source in the colours of the target, target, validation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import v2
from tqdm import tqdm

from _study.restyling import restyle
from selftrain_seg.datasets import LabelMap, SegmentationFolder

_LEAST = 16  # source images, of which two are held out

Folders = list[list[str]]  # of images, of their masks, and which of them


class Images(NamedTuple):
    """Images in memory, uint8 (N, 3, H, W), and their labels (N, H, W)."""

    images: Tensor
    labels: Tensor

    def take(self, places: Any) -> Images:
        """Return some of them."""
        return Images(self.images[places], self.labels[places])


class World(NamedTuple):
    """All that a study reads.

    ``source`` is trained on. ``check``, ``check_histograms`` and ``trust`` are source images that are not, in the
    colours of target images: the first two tell how good a network is, the third how far its classes can be trusted.
    """

    classes: tuple[str, ...]
    source: Images
    held_out: Images
    check: Images
    check_histograms: Images
    trust: Images
    target: Images
    val: Images


def read(folders: Folders, label_map: LabelMap, size: tuple[int, int]) -> Images:
    """Read folders into memory, all images resized."""
    images, labels = [], []
    for folder, masks, names in folders:
        dataset = SegmentationFolder(folder, masks, label_map=label_map, names=None if names == "*" else names)
        for image, mask in tqdm(dataset, folder, leave=False, disable=None):
            small = v2.functional.resize(image, list(size), antialias=True)
            images.append(v2.functional.to_dtype(small, torch.uint8, scale=True).as_subclass(Tensor))
            labels.append(
                v2.functional.resize(mask[None], list(size), v2.InterpolationMode.NEAREST)[0].as_subclass(Tensor)
            )
    return Images(torch.stack(images), torch.stack(labels).long())


def open_world(source: Folders, target: Folders, val: Folders, classes: Path, size: tuple[int, int]) -> World:
    """Read all folders; an eighth of the source is held out, in runs of neighbouring images."""
    label_map = LabelMap.load(classes)
    labelled, unlabelled, evaluated = (read(part, label_map, size) for part in (source, target, val))
    count = len(labelled.images)
    if count < _LEAST:
        raise SystemExit(f"--source: expected at least {_LEAST} images, since an eighth is held out, got {count}")
    place = torch.arange(count) * min(8, count // 8) % count * 8 // count  # up to eight runs, each in eight parts
    held_out, rest = labelled.take(place == 7), labelled.take(place != 7)
    even = torch.arange(len(held_out.images)) % 2 == 0
    moments, histograms = (
        Images(restyle(held_out.images, unlabelled.images, how, torch.Generator().manual_seed(0)), held_out.labels)
        for how in ("moments", "histograms")
    )
    check, trust, other = moments.take(even), moments.take(~even), histograms.take(even)
    return World(tuple(label_map.classes), rest, held_out, check, other, trust, unlabelled, evaluated)


def as_floats(images: Tensor) -> Tensor:
    """Convert to float32 in [0, 1], channels last."""
    return (images.float() / 255).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror and recolour each image by itself; labels are hard (B, H, W) or soft (B, C, H, W)."""
    jitter = v2.ColorJitter(0.2, 0.2, 0.2, 0.03)
    mirrored = torch.rand(len(images)) < 0.5
    images = torch.stack([jitter(image) for image in images])
    images, labels = images.clone(), labels.clone()
    images[mirrored], labels[mirrored] = images[mirrored].flip(-1), labels[mirrored].flip(-1)
    return as_floats(images), labels


def strong_view() -> Callable[[Tensor], Tensor]:
    """Recolour and blur."""
    return v2.Compose([v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.RandomApply([v2.GaussianBlur(5, (0.2, 1.5))], 0.5)])
