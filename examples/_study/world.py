"""The images of a study, in memory: source, held-out source in the colours of the target, target, validation."""

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

_MINIMUM = 16  # source images; two of them are held out

Folders = list[list[str]]  # [images, masks, names] of each data set


class Images(NamedTuple):
    """Images in memory, uint8 (N, 3, H, W), and their labels (N, H, W)."""

    images: Tensor
    labels: Tensor

    def take(self, index: Any) -> Images:
        """Return the images and labels at an index."""
        return Images(self.images[index], self.labels[index])


class World(NamedTuple):
    """All images of a study.

    ``source`` is for training. ``check``, ``check_histograms`` and ``trust`` are held-out source images in the colours
    of target images. The first two score a network, the third measures the precision of each class.
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
    """Read folders into memory and resize all images."""
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
    """Read all folders and hold out an eighth of the source images, in runs of neighbours."""
    label_map = LabelMap.load(classes)
    labelled, unlabelled, evaluated = (read(part, label_map, size) for part in (source, target, val))
    count = len(labelled.images)
    if count < _MINIMUM:
        raise SystemExit(f"--source: expected at least {_MINIMUM} images, since an eighth is held out, got {count}")
    eighth = torch.arange(count) * min(8, count // 8) % count * 8 // count  # up to eight runs, each in eight parts
    held_out, rest = labelled.take(eighth == 7), labelled.take(eighth != 7)
    even = torch.arange(len(held_out.images)) % 2 == 0
    moments, histograms = (
        Images(restyle(held_out.images, unlabelled.images, method, torch.Generator().manual_seed(0)), held_out.labels)
        for method in ("moments", "histograms")
    )
    check, trust, other = moments.take(even), moments.take(~even), histograms.take(even)
    return World(tuple(label_map.classes), rest, held_out, check, other, trust, unlabelled, evaluated)


def as_floats(images: Tensor) -> Tensor:
    """Convert to float32 in [0, 1], channels last."""
    return (images.float() / 255).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror and recolour each image separately; labels are hard (B, H, W) or soft (B, C, H, W)."""
    jitter = v2.ColorJitter(0.2, 0.2, 0.2, 0.03)
    mirrored = torch.rand(len(images)) < 0.5
    images = torch.stack([jitter(image) for image in images])
    images, labels = images.clone(), labels.clone()
    images[mirrored], labels[mirrored] = images[mirrored].flip(-1), labels[mirrored].flip(-1)
    return as_floats(images), labels


def strong_view() -> Callable[[Tensor], Tensor]:
    """Return a transform that strongly recolours and blurs."""
    return v2.Compose([v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.RandomApply([v2.GaussianBlur(5, (0.2, 1.5))], 0.5)])
