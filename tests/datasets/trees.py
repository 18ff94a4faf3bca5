"""Small trees in the exact layouts of the real data sets, written without the package."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import Cityscapes

SIZE = (6, 10)
CITYSCAPES = Cityscapes.classes
Draw = Callable[[int], tuple[np.ndarray, np.ndarray]]  # number of the image -> picture and ids, in place of noise


def rng(seed=0):
    return np.random.default_rng(seed)


def picture(seed=0, size=SIZE):
    return rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def png16(pixels) -> bytes:
    """A PNG of 16 bits a channel, (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA, by hand."""
    pixels = np.asarray(pixels)
    kind = {2: 0, 3: {3: 2, 4: 6}.get(pixels.shape[-1])}[pixels.ndim]
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def save(path: Path, pixels, palette=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(pixels, bytes):
        path.write_bytes(pixels)
        return
    image = Image.fromarray(np.asarray(pixels))
    if palette is not None:
        image.putpalette(bytes(np.asarray(palette, np.uint8).tobytes()))
    image.save(path, **options)


def truncate(path: Path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def gta5(root: Path, count=3, draw: Draw | None = None):
    """Ids 0 to 34 as indices of a palette; returns the ids."""
    out = {}
    for number in range(1, count + 1):
        ids = rng(number).integers(0, 35, SIZE, dtype=np.uint8)
        pixels, ids = draw(number) if draw else (picture(number), ids)
        save(root / "images" / f"{number:05d}.png", pixels)
        save(root / "labels" / f"{number:05d}.png", ids, gta5_palette())
        out[f"{number:05d}"] = ids
    return out


def gta5_palette():
    """The colours of Cityscapes by id, as torchvision has them; "static" and the license plate are GTA5's own."""
    palette = np.zeros((256, 3), np.uint8)
    for entry in CITYSCAPES:
        if entry.id >= 0:
            palette[entry.id] = entry.color
    palette[4], palette[34] = (20, 20, 20), (0, 0, 142)
    return palette


def voc_palette():
    """As the VOC development kit's VOClabelcolormap draws it."""
    palette = np.zeros((256, 3), np.uint8)
    for number in range(256):
        for bit in range(8):
            for channel in range(3):
                palette[number, channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
    return palette


def synthia(root: Path, count=3, draw: Draw | None = None):
    """16-bit RGB: the id, the number of the object, nothing."""
    out = {}
    for number in range(count):
        pixels, ids = draw(number) if draw else (picture(number), rng(number).integers(0, 23, SIZE))
        objects = rng(number + 50).integers(0, 3000, ids.shape)
        save(root / "RGB" / f"{number:07d}.png", pixels)
        save(root / "GT" / "LABELS" / f"{number:07d}.png", png16(np.stack((ids, objects, 0 * ids), 2)))
        out[f"{number:07d}"] = ids
    return out


def cityscapes(root: Path, split="train", mode="gtFine", cities=("ulm", "aachen"), count=2, draw: Draw | None = None):
    out = {}
    for city in cities:
        for number in range(count):
            stem = f"{city}_{number:06d}_000019"
            ids = rng(len(out)).integers(0, 34, SIZE, dtype=np.uint8)
            pixels, ids = draw(len(out)) if draw else (picture(number), ids)
            save(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", pixels)
            folder = root / mode / split / city
            save(folder / f"{stem}_{mode}_labelIds.png", ids)
            save(folder / f"{stem}_{mode}_labelTrainIds.png", np.full(ids.shape, 255, np.uint8))
            save(folder / f"{stem}_{mode}_instanceIds.png", png16(ids))
            save(folder / f"{stem}_{mode}_color.png", np.zeros((*ids.shape, 4), np.uint8))
            (folder / f"{stem}_{mode}_polygons.json").write_text("{}")
            out[f"{city}/{stem}"] = ids
    return out


def bdd100k(root: Path, split="train", count=3, masks=True):
    out = {}
    for number in range(count):
        name = f"{number:08x}-00000000"
        ids = rng(number).choice([*range(19), 255], SIZE).astype(np.uint8)
        save(root / "images" / "10k" / split / f"{name}.jpg", picture(number))
        if masks:
            save(root / "labels" / "sem_seg" / "masks" / split / f"{name}.png", ids)
            save(root / "labels" / "sem_seg" / "colormaps" / split / f"{name}.png", picture())
        out[name] = ids
    return out


def voc(root: Path, train=3, val=2, extra=4, augmented=True, draw: Draw | None = None):
    """``extra`` images have labels of SBD only; with ``augmented`` all have one in SegmentationClassAug."""
    names = [f"2007_{number:06d}" for number in range(train + val + extra)]
    parts = {"train": names[:train], "val": names[train : train + val], "trainval": names[: train + val]}
    out = {}
    for number, name in enumerate(names):
        size = (5 + number, 9)
        ids = rng(number).choice([*range(21), 255], size).astype(np.uint8)
        pixels, ids = draw(number) if draw else (picture(number, size), ids)
        save(root / "JPEGImages" / f"{name}.jpg", pixels)
        if name in parts["trainval"]:
            save(root / "SegmentationClass" / f"{name}.png", ids, voc_palette())
        if augmented:
            save(root / "SegmentationClassAug" / f"{name}.png", ids)
        out[name] = ids
    for split, listed in parts.items():
        path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in listed))
    return out
