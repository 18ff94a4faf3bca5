"""Mined crops of eight images of 512 x 1024 with their labels, 19 classes of which seven are mined.

"as published" takes the steps of CRST's data set, once per image: ``np.unique`` of the labels says which mined
classes occur, one of them is drawn, ``np.where`` lists its pixels, one is drawn, image and labels are sliced. "np.where
alone" is the least that a loop over images can do: it asks for one class after the other, in random order, and stops
at the first that occurs. "floor" copies the crops from corners already known. The labels are the synthetic
benchmark's streets; three of the mined classes occur in none of them, as rare classes do in most images.
"""

from __future__ import annotations

import numpy as np
import torch

from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.mining import crop, mine_crops
from tests.benchmarks._harness import Report

BATCH, HEIGHT, WIDTH = 8, 512, 1024
SIZE = (256, 512)
CHANCE = 0.8
CLASSES = 19
MINED = (5, 6, 10, 12, 13, 14, 15)  # light, sign, rider, bicycle, and three that never occur


def present_by_unique(labels, classes, rng):
    present = np.unique(labels)
    mined = np.array([c for c in classes if c in present])
    return np.where(labels == rng.choice(mined)) if mined.size else None


def present_by_where(labels, classes, rng):
    for c in rng.permutation(classes):
        pixels = np.where(labels == c)
        if len(pixels[0]):
            return pixels
    return None


def by_loop(images, labels, find, rng):
    """NumPy arrays (B, 3, H, W) and (B, H, W) to tensors of crops."""
    image_crops, label_crops = [], []
    _, height, width = labels.shape
    for image, label in zip(images, labels, strict=True):
        top, left = rng.integers(height - SIZE[0] + 1), rng.integers(width - SIZE[1] + 1)
        pixels = find(label, MINED, rng) if rng.random() < CHANCE else None
        if pixels is not None:
            one = rng.integers(len(pixels[0]))
            top = min(max(pixels[0][one] - SIZE[0] // 2, 0), height - SIZE[0])
            left = min(max(pixels[1][one] - SIZE[1] // 2, 0), width - SIZE[1])
        window = slice(top, top + SIZE[0]), slice(left, left + SIZE[1])
        image_crops.append(image[:, window[0], window[1]])
        label_crops.append(label[window])
    return torch.from_numpy(np.stack(image_crops)), torch.from_numpy(np.stack(label_crops))


def run(report: Report, *, rounds: int) -> None:
    streets = SyntheticStreets("source", "train", size=(HEIGHT, WIDTH), length=BATCH)
    images, labels = (torch.stack(part) for part in zip(*(streets[index] for index in range(BATCH)), strict=True))
    counts = torch.stack([(labels == c).sum((1, 2)) for c in range(CLASSES)], dim=1)
    classes = torch.tensor(MINED)
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)

    def ours(labels, image_counts=None):
        corners = mine_crops(labels, classes, SIZE, chance=CHANCE, image_counts=image_counts, generator=generator)
        return crop(images, corners, SIZE), crop(labels, corners, SIZE)

    for kind, dtype in (("int64", torch.int64), ("uint8", torch.uint8)):
        maps = labels.to(dtype)
        arrays = images.numpy(), maps.numpy()
        corners = mine_crops(maps, classes, SIZE, generator=generator)
        measured = report.compare(
            f"mined crops, {kind} labels",
            {
                "as published": lambda arrays=arrays: by_loop(*arrays, present_by_unique, rng),
                "np.where alone": lambda arrays=arrays: by_loop(*arrays, present_by_where, rng),
                "mine_crops + crop": lambda maps=maps: ours(maps),
                "with stored counts": lambda maps=maps: ours(maps, counts),
                "mine_crops": lambda maps=maps: mine_crops(maps, classes, SIZE, generator=generator),
                "mine_crops, stored counts": lambda maps=maps: mine_crops(
                    maps, classes, SIZE, image_counts=counts, generator=generator
                ),
                "floor": lambda maps=maps, corners=corners: (crop(images, corners, SIZE), crop(maps, corners, SIZE)),
            },
            rounds=rounds,
        )
        for text, name, faster in (("", "mine_crops + crop", 4), (", stored counts", "with stored counts", 8)):
            report.target(
                f"mined crop, {kind} labels{text}", measured, name, "as published", faster=faster, floor="floor"
            )
