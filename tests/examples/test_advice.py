"""The library's errors about files, provoked with real files, as users of the command line read them."""

from __future__ import annotations

import json
import re
import sys
from argparse import Namespace

import numpy as np
import pytest
from PIL import Image

from selftrain_seg.datasets import LabelMap, SegmentationFolder
from tests.examples.trainers import EXAMPLES

CLASSES = {0: "ground", 1: "tree"}
IDS = LabelMap.from_names(CLASSES)


@pytest.fixture
def common(monkeypatch):
    """Lets a test import what the examples share."""
    monkeypatch.syspath_prepend(EXAMPLES)


def save(path, pixels, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype)).save(path)


def colours(root):
    """A mask of three channels that differ."""
    save(root / "masks" / "b.png", np.arange(96).reshape(4, 8, 3))


def palette(root):
    """A mask with a palette that draws the tree in the colour of the ground."""
    mask = Image.fromarray(np.arange(32, dtype=np.uint8).reshape(4, 8) % 2)
    mask.putpalette([9, 9, 9, 0, 0, 200])
    mask.save(root / "masks" / "b.png")


def frames(root):
    (root / "images" / "b.png").unlink()
    pages = [Image.new("L", (8, 4), number) for number in (0, 200)]
    pages[0].save(root / "images" / "b.gif", save_all=True, append_images=pages[1:])


# What is done to two images and masks, arguments of SegmentationFolder or verify, and the message of trainers.
FOLDERS = {
    "no mask": (
        lambda root: (root / "masks" / "b.png").unlink(),
        {},
        "1 of 2 images have no mask: b; expected /masks/b.png (or another suffix); there are a.png. Set --mask-suffix "
        "if masks have other names, --source-names, --target-names or --val-names to select images, or "
        "--leave-out-unpaired to skip images without a mask",
    ),
    "suffix": (
        lambda root: None,
        {"mask_suffix": "_mask.png"},
        "2 of 2 images have no mask: a, b; expected /masks/a_mask.png; there are a.png, b.png. Set --mask-suffix if "
        "masks have other names, --source-names, --target-names or --val-names to select images, or "
        "--leave-out-unpaired to skip images without a mask",
    ),
    "pattern": (
        lambda root: None,
        {"names": "x*"},
        "--source-names, --target-names or --val-names: no image matches 'x*'; images are named a, b",
    ),
    "two files": (
        lambda root: save(root / "images" / "a.bmp", np.zeros((4, 8))),
        {},
        "expected one file named 'a', got two: /images/a.bmp and /images/a.png; remove one",
    ),
    "masks as images": (
        lambda root: save(root / "images" / "a.bmp", np.zeros((4, 8))),
        {"masks": "images"},
        "expected one file named 'a', got two: /images/a.bmp and /images/a.png; remove one, or tell masks from images "
        "with --mask-suffix",
    ),
    "no folder": (lambda root: None, {"masks": "nowhere"}, "expected a folder /nowhere, found none"),
    "no images": (
        lambda root: [path.rename(path.with_suffix(".txt")) for path in (root / "images").iterdir()],
        {},
        "expected images (.png .jpg .jpeg .tif .tiff .bmp .webp .gif) in /images, found none: it holds 2 × .txt",
    ),
    "channels": (
        lambda root: None,
        {"channels": 5},
        "/images/b.png: expected 5 channels, got 3; --channels 3 keeps all",
    ),
    "opacity": (
        lambda root: save(root / "images" / "b.png", np.zeros((4, 8, 4))),
        {"channels": 1, "names": ["a"]},
        None,
    ),
    "int32": (
        lambda root: Image.fromarray(np.zeros((4, 8), np.int32)).save(root / "images" / "b.png"),
        {},
        None,
    ),
    "dark": (
        lambda root: save(root / "images" / "b.png", np.full((4, 8), 5000), np.uint16),
        {"white": 4095},
        "/images/b.png: expected values from 0 to --white 4095, got 5000 to 5000",
    ),
    "frames": (
        frames,
        {},
        "/images/b.gif: holds 2 frames or pages; expected one image: save the one you want as a separate file",
    ),
    "mask of two channels": (
        lambda root: Image.new("LA", (8, 4)).save(root / "masks" / "b.png"),
        {},
        None,
    ),
    "mask of four channels": (
        lambda root: Image.new("CMYK", (8, 4)).save(root / "masks" / "b.tif"),
        {},
        None,
    ),
    "mask in colours": (
        colours,
        {},
        "/masks/b.png: expected one channel of class ids, got 3 channels of torch.uint8, and the label map has no "
        "colours; give it some (columns r, g, b in a .csv file for --classes), or read the first channel with "
        "--read-masks first",
    ),
}
