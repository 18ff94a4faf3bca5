"""Tiles of large images: every pixel, the right one, once read."""

from __future__ import annotations

import pickle
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from selftrain_seg.datasets import LabelMap, SegmentationFolder, Tiles
from selftrain_seg.mining import ClassIndex
from tests.datasets import files, trees

SIZES = {"a": (40, 50), "b/c": (16, 16), "d": (7, 33), "e": (17, 10)}
MAP = LabelMap.from_names({number: f"class {number}" for number in range(9)})


@pytest.fixture
def root(tmp_path):
    for number, (name, size) in enumerate(SIZES.items()):
        trees.save(tmp_path / "images" / f"{name}.png", trees.picture(number, size))
        trees.save(tmp_path / "masks" / f"{name}.png", trees.rng(number).integers(0, 9, size, dtype=np.uint8))
    return tmp_path


def opened(root, labelled=True):
    return SegmentationFolder(root / "images", root / "masks" if labelled else None, label_map=MAP)


@pytest.mark.parametrize(("size", "overlap"), [(16, 0), (16, 5), ((16, 8), (15, 1)), (40, 39), ((1, 50), 0), (64, 3)])
def test_every_pixel_of_every_image(root, size, overlap):
    whole = opened(root)
    tiles = Tiles(whole, size, overlap=overlap)
    height, width = tiles.size
    shared = overlap if isinstance(overlap, tuple) else (overlap, overlap)
    covered = {index: torch.zeros(SIZES[name], dtype=torch.int64) for index, name in enumerate(whole.names)}
    corners = {}
    assert len(tiles) == len(tiles.names) == len(set(tiles.names)) == len(tiles.places)
    for number, (image, labels) in enumerate(tiles):
        index, top, left, rows, columns = tiles.places[number]
        assert tiles.names[number] == f"{whole.names[index]}@{top},{left}"
        assert (type(image), type(labels)) == (tv_tensors.Image, tv_tensors.Mask)
        assert (tuple(image.shape), tuple(labels.shape)) == ((3, height, width), (height, width))
        inside = slice(top, top + rows), slice(left, left + columns)
        assert torch.equal(image[:, :rows, :columns], whole[index][0][(slice(None), *inside)])
        assert torch.equal(labels[:rows, :columns], whole[index][1][inside])
        assert image.sum() == image[:, :rows, :columns].sum()
        assert (labels == 255).sum() == height * width - rows * columns
        covered[index][inside] += 1
        corners.setdefault(index, []).append((top, left))
    for index, name in enumerate(whole.names):
        assert covered[index].min() == 1
        for axis, (length, tile, least) in enumerate(zip(SIZES[name], (height, width), shared, strict=True)):
            starts = sorted({corner[axis] for corner in corners[index]})
            steps = np.diff(starts)
            assert (steps <= tile - least).all()
            assert (steps[:-1] == tile - least).all()
            assert starts[-1] == max(length - tile, 0)  # no tile too many


def test_without_labels_and_with_those_of_a_function(root):
    plain = Tiles(opened(root, labelled=False), 16)
    for number, (image, name) in enumerate(plain):
        assert name == plain.names[number]
        assert tuple(image.shape) == (3, 16, 16)
    kept = {name: torch.randint(0, 9, (16, 16), dtype=torch.uint8) for name in plain.names}
    for dataset in (opened(root, labelled=False), opened(root)):
        for (image, labels), (other, name) in zip(Tiles(dataset, 16, labels=kept.__getitem__), plain, strict=True):
            assert torch.equal(image, other)
            assert torch.equal(labels, kept[name].long())
    with pytest.raises(ValueError, match=r"`labels\('a@0,0'\)`: expected \(H, W\) = \(16, 16\), got \(16, 15\)"):
        Tiles(opened(root), 16, labels=lambda name: torch.zeros(16, 15, dtype=torch.int64))[0]
    with pytest.raises(TypeError, match=r"`labels\('a@0,0'\)`: expected an integer dtype"):
        Tiles(opened(root), 16, labels=lambda name: torch.zeros(16, 16))[0]


def test_an_image_is_read_once(root, monkeypatch):
    tiles = Tiles(opened(root), 16)
    read = []
    monkeypatch.setattr(type(tiles.dataset), "_read_picture", counted(type(tiles.dataset)._read_picture, read))
    first = [image for image, _ in tiles]
    assert read == list(SIZES)
    image, labels = tiles[0]
    image.zero_()  # a tile is nobody's view: the image kept for its neighbours stays as it is
    labels.fill_(7)
    assert torch.equal(tiles[0][0], first[0])
    assert len(tiles[0][1].unique()) > 1


def counted(function, calls):
    def wrapper(self, name):
        calls.append(name)
        return function(self, name)

    return wrapper


def test_facts_transforms_masks_pickle_workers(root):
    flip = v2.RandomHorizontalFlip(1.0)
    tiles, flipped = Tiles(opened(root), 16), Tiles(opened(root), 16, transforms=flip)
    assert (tiles.num_classes, tiles.classes, tiles.ignore_index) == (9, MAP.classes, 255)
    assert (tiles.palette, tiles.label_map) == (MAP.palette, MAP)
    assert tiles.verify().samples == len(SIZES)
    assert tiles.verify(images=False, most=1, progress=False, check_meaning=False).samples == 1
    assert repr(tiles).endswith(f"4 samples), {len(tiles)} tiles of 16 × 16)")
    for (image, labels), (image_0, labels_0), mask in zip(flipped, tiles, tiles.masks(), strict=True):
        assert torch.equal(image, image_0.flip(2))
        assert torch.equal(labels, labels_0.flip(1))
        assert type(mask) is torch.Tensor
        assert torch.equal(mask, labels_0)
    counts = ClassIndex.from_masks(DataLoader(tiles.masks(), batch_size=None), 9).counts
    assert counts[0].tolist() == torch.bincount(tiles[0][1].flatten(), minlength=9).tolist()
    copy = pickle.loads(pickle.dumps(tiles))  # noqa: S301
    loader = DataLoader(copy, batch_size=3, num_workers=2, multiprocessing_context=get_context("fork"))
    for number, (images, _) in enumerate(loader):
        assert torch.equal(images[0], tiles[3 * number][0])
    with pytest.raises(IndexError, match="`index`: expected a value in"):
        tiles[len(tiles)]
    assert torch.equal(tiles[-1][0], tiles[len(tiles) - 1][0])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_after_an_orientation(tmp_path, kind, orientation):
    """What the head says is what is read."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a.png").write_bytes(files.encoded(trees.picture(0, (20, 40)), kind, exif=exif))
    tiles = Tiles(SegmentationFolder(tmp_path), 16)
    height, width = SegmentationFolder(tmp_path)[0][0].shape[1:]
    assert {(place.top, place.left) for place in tiles.places} == {
        (top, left) for top in {0, height - 16, min(16, height - 16)} for left in {0, width - 16, min(16, width - 16)}
    }
    assert all(tuple(image.shape) == (3, 16, 16) for image, _ in tiles)


def test_channels_and_depths(tmp_path):
    tall = np.arange(40 * 20, dtype=np.uint16).reshape(40, 20) * 80
    (tmp_path / "a.png").write_bytes(files.png(tall, 16))
    tiles = Tiles(SegmentationFolder(tmp_path, channels=1), (16, 20))
    assert np.array_equal(np.asarray(tiles[1][0])[0], tall[16:32] / np.float32(65535))


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"size": 0}, ValueError, "`size`: expected at least 1, got 0"),
            ({"size": (1, 2, 3)}, ValueError, r"`size`: expected \(height, width\), got \(1, 2, 3\)"),
            ({"size": 2.0}, TypeError, "`size`: expected an int, got float"),
            ({"size": 8, "overlap": 8}, ValueError, r"`overlap`: expected less than size \(8, 8\), got \(8, 8\)"),
            ({"size": 8, "overlap": -1}, ValueError, "`overlap`: expected at least 0, got -1"),
            ({"size": 8, "labels": {}}, TypeError, "`labels`: expected a function of the name of a tile, got dict"),
        ],
    )
    def test_arguments(self, root, options, error, message):
        with pytest.raises(error, match=message):
            Tiles(opened(root), **options)

    def test_datasets(self, root):
        with pytest.raises(TypeError, match="`dataset`: expected a data set of files, got list"):
            Tiles([1], 8)
        dataset = SegmentationFolder(root / "images", transforms=v2.RandomHorizontalFlip())
        with pytest.raises(ValueError, match="`dataset`: expected a data set without transforms"):
            Tiles(dataset, 8)

    def test_files(self, root):
        dataset = opened(root)
        (root / "images/d.png").write_bytes(b"nothing")
        with pytest.raises(ValueError, match=r"d.png: broken, or not an image"):
            Tiles(dataset, 8)
        (root / "images/d.png").unlink()
        with pytest.raises(FileNotFoundError, match=r"d.png"):
            Tiles(dataset, 8)

    def test_masks_of_another_size(self, root):
        dataset = opened(root)
        tiles = Tiles(dataset, 8)
        for size in ((4, 4), (99, 99)):
            trees.save(dataset._label_path("a"), np.zeros(size, np.uint8))
            for samples in (tiles, tiles.masks()):
                with pytest.raises(ValueError, match=rf"a.png: expected \(H, W\) = .*, got \({size[0]}, {size[1]}\)"):
                    samples[0]

    def test_large_ones(self, root, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(ValueError, match=r"a.png: larger than Pillow's limit"):
            Tiles(opened(root), 8)
