"""Folders of images and masks as people have them, and everything that is wrong with some: real files, real links."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shlex
import subprocess
import sys
import unicodedata
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from selftrain_seg.datasets import (
    BDD100K,
    GTA5,
    SYNTHIA,
    BrokenFilesError,
    Cityscapes,
    LabelMap,
    SegmentationFolder,
    VOCSegmentation,
)
from selftrain_seg.mining import ClassIndex
from tests import worlds
from tests.datasets import files, trees

IDS = np.array([[0, 2, 7, 40], [0, 0, 2, 2]], np.uint8)
CLASSES = {0: "ground", 2: "water", 7: "roof", 40: "tree"}
MAP = LabelMap.from_names(CLASSES)
EXPECTED = [[0, 1, 2, 3], [0, 0, 1, 1]]
PICTURE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
COLOURS = {"ground": (10, 20, 30), "water": (0, 0, 255), "roof": (255, 0, 0), "tree": (0, 128, 0)}
COLOURED = LabelMap.from_names(CLASSES, colours=COLOURS)
BY_COLOUR = LabelMap.from_colours({colour: name for name, colour in COLOURS.items()})


def palette_of(table):
    """256 colours, those of ``table`` (index -> colour) and black."""
    palette = np.zeros((256, 3), np.uint8)
    for index, colour in table.items():
        palette[index] = colour
    return palette


PALETTE = palette_of({label_id: COLOURS[name] for label_id, name in CLASSES.items()})


def put(root, name, pixels=PICTURE, palette=None, **options):
    trees.save(root / name, pixels, palette, **options)


def pair(root, mask, name="mask.png", label_map=MAP, **options):
    """A folder with an image of 2 x 4 pixels and its mask."""
    put(root, "images/mask.png")
    put(root, f"masks/{name}", mask, options.pop("palette", None))
    return SegmentationFolder(root / "images", root / "masks", label_map=label_map, **options)


def refuses(dataset, message):
    """Both a sample and ``verify`` say so, and name the file."""
    with pytest.raises(ValueError, match=message):
        dataset[0]
    with pytest.raises(BrokenFilesError, match=message):
        dataset.verify()


class TestPairing:
    @pytest.mark.parametrize("suffix", ["png", "JPG", "jpeg", "JPEG", "tif", "TIFF", "bmp", "webp", "Png", "GIF"])
    def test_any_suffix_in_any_case(self, tmp_path, suffix):
        kind = {"jpg": "JPEG", "tif": "TIFF"}.get(suffix.lower(), suffix.upper())
        (tmp_path / "images").mkdir()
        (tmp_path / f"images/a.{suffix}").write_bytes(files.encoded(PICTURE, kind))
        put(tmp_path, "masks/a.png", IDS)
        dataset = SegmentationFolder(tmp_path / "images", tmp_path / "masks", label_map=MAP)
        assert dataset.names == ("a",)
        assert dataset[0][1].tolist() == EXPECTED

    @pytest.mark.parametrize("suffix", [".png", ".PNG", ".tif", ".TIFF", ".bmp"])
    def test_masks_of_any_lossless_suffix(self, tmp_path, suffix):
        assert pair(tmp_path, IDS, f"mask{suffix}")[0][1].tolist() == EXPECTED

    def test_nested_with_suffixes(self, tmp_path):
        for town in ("Paris", "Rom/Süd ä"):
            put(tmp_path, f"images/{town}/0001.jpg")
            put(tmp_path, f"masks/{town}/0001_gt.PNG", IDS)
            put(tmp_path, f"masks/{town}/0001.png", IDS + 1)  # another kind of file beside them
        folders = tmp_path / "images", tmp_path / "masks"
        for suffix in ("_gt", "_gt.png"):
            dataset = SegmentationFolder(*folders, label_map=MAP, mask_suffix=suffix)
            assert dataset.names == ("Paris/0001", "Rom/Süd ä/0001")
            assert [labels.tolist() for _, labels in dataset] == [EXPECTED] * 2
        by_function = SegmentationFolder(*folders, label_map=MAP, pair=lambda name: f"{name}_gt.PNG")
        assert [labels.tolist() for _, labels in by_function] == [EXPECTED] * 2

    def test_images_are_not_their_own_masks(self, tmp_path):
        put(tmp_path, "a.png", IDS)
        with pytest.raises(ValueError, match=r"`pair`: expected paths of masks, got those of the images: .*a\.png"):
            SegmentationFolder(tmp_path, tmp_path, label_map=MAP, pair=lambda name: f"{name}.png")

    def test_masks_among_the_images(self, tmp_path):
        put(tmp_path, "a/x.jpg")
        put(tmp_path, "a/x_mask.png", IDS)
        expected = ("a/x",)
        for options in ({"mask_suffix": "_mask"}, {"mask_suffix": "_mask.png"}, {"pair": "{}_mask.png".format}):
            dataset = SegmentationFolder(tmp_path, tmp_path, label_map=MAP, **options)
            assert dataset.names == expected
            assert dataset[0][1].tolist() == EXPECTED
            assert dataset.left_out == []
        unlabelled = SegmentationFolder(tmp_path, mask_suffix="_mask")
        assert unlabelled.names == expected
        assert unlabelled.left_out == [(tmp_path / "a/x_mask.png", "a mask: ends in _mask")]

    def test_same_stem_in_one_folder(self, tmp_path):
        put(tmp_path, "x.jpg")
        put(tmp_path, "x.png", IDS)
        message = r"`images`: expected one file named 'x', got two: .*x.jpg and .*x.png; remove one, or .* `mask_s"
        with pytest.raises(ValueError, match=message):
            SegmentationFolder(tmp_path, tmp_path, label_map=MAP)
        dataset = SegmentationFolder(tmp_path, tmp_path, label_map=MAP, mask_suffix=".png")
        assert dataset[0][1].tolist() == EXPECTED

    def test_masks_below_the_images(self, tmp_path):
        put(tmp_path, "x.png")
        put(tmp_path, "masks/x.png", IDS)
        put(tmp_path, "masks/y.png", IDS)
        dataset = SegmentationFolder(tmp_path, tmp_path / "masks", label_map=MAP)
        assert dataset.names == ("x",)
        assert [path.name for path, _ in dataset.left_out] == ["y.png", "y.png"]

    def test_masks_around_the_images(self, tmp_path):
        put(tmp_path, "images/x.png")
        put(tmp_path, "masks/x.png", IDS)
        dataset = SegmentationFolder(tmp_path / "images", tmp_path, label_map=MAP)
        assert dataset[0][1].tolist() == EXPECTED
        put(tmp_path, "images/y.png")
        put(tmp_path, "masks/y.png", IDS)
        some = SegmentationFolder(tmp_path / "images", tmp_path, label_map=MAP, names=["x"])  # y.png is still an image
        assert some[0][1].tolist() == EXPECTED
        (tmp_path / "linked").symlink_to(tmp_path / "images", target_is_directory=True)  # no mask by another name
        assert SegmentationFolder(tmp_path / "images", tmp_path, label_map=MAP)[0][1].tolist() == EXPECTED

    def test_other_folders_on_both_sides(self, tmp_path):
        """By the stem alone, where it occurs once."""
        for number in (1, 2):
            put(tmp_path, f"images/{number}/photo/cell{number}.png")
            put(tmp_path, f"masks/all/cell{number}.png", IDS)
        dataset = SegmentationFolder(tmp_path / "images", tmp_path / "masks", label_map=MAP)
        assert dataset.names == ("1/photo/cell1", "2/photo/cell2")
        put(tmp_path, "images/3/photo/cell1.png")  # now it could be either's
        with pytest.raises(ValueError, match="`masks`: 3 of 3 images have no mask: 1/photo/cell1, 2/photo/cell2, 3/"):
            SegmentationFolder(tmp_path / "images", tmp_path / "masks", label_map=MAP)

    def test_accents_of_two_systems(self, tmp_path):
        name = "Çé ü 日本"
        put(tmp_path, f"images/{unicodedata.normalize('NFD', name)}.png")
        put(tmp_path, f"masks/{unicodedata.normalize('NFC', name)}.png", IDS)
        (tmp_path / "names.txt").write_text(unicodedata.normalize("NFC", name) + ".png\n", encoding="utf-8")
        folders = tmp_path / "images", tmp_path / "masks"
        dataset = SegmentationFolder(*folders, label_map=MAP, names=tmp_path / "names.txt")
        assert dataset[0][1].tolist() == EXPECTED

    def test_twice_the_same_stem(self, tmp_path):
        put(tmp_path, "images/a.png")
        put(tmp_path, "images/a.JPG")
        with pytest.raises(ValueError, match=r"`images`: expected one file named 'a', got two: .*a.JPG and .*a.png"):
            SegmentationFolder(tmp_path / "images")
        (tmp_path / "images/a.JPG").unlink()
        put(tmp_path, "masks/a.png", IDS)
        put(tmp_path, "masks/a.tif", IDS)
        with pytest.raises(
            ValueError, match=r"`masks`: expected one file named 'a', got two: .*a.png and .*a.tif; rem"
        ):
            SegmentationFolder(tmp_path / "images", tmp_path / "masks", label_map=MAP)

    def test_no_pair(self, tmp_path):
        for name in "abc":
            put(tmp_path, f"images/{name}.png")
        put(tmp_path, "masks/b.png", IDS)
        put(tmp_path, "masks/z.png", IDS)
        folders = tmp_path / "images", tmp_path / "masks"
        message = r"`masks`: 2 of 3 images have no mask: a, c; expected .*masks/a.png \(or another suffix\).*`unpaired="
        with pytest.raises(ValueError, match=message):
            SegmentationFolder(*folders, label_map=MAP)
        dataset = SegmentationFolder(*folders, label_map=MAP, unpaired="leave out")
        assert dataset.names == ("b",)
        assert {path.name: why for path, why in dataset.left_out} == {
            "a.png": "without a mask",
            "c.png": "without a mask",
            "z.png": "a mask without an image",
        }
        with pytest.raises(ValueError, match=r"`masks`: 3 of 3 images have no mask: .*masks/a_no.png"):
            SegmentationFolder(*folders, label_map=MAP, mask_suffix="_no", unpaired="leave out")
        with pytest.raises(
            ValueError, match=r"`masks`: 3 of 3 images have no mask: .*masks/a.bmp; there are b.png, z.png\. "
        ):
            SegmentationFolder(*folders, label_map=MAP, pair="{}.bmp".format)


class TestNames:
    @pytest.fixture
    def root(self, tmp_path):
        for name in ("a/1", "a/2 b", "c/1", "c/3"):
            put(tmp_path, f"images/{name}.jpg")
        return tmp_path / "images"

    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            ("a/*", ("a/1", "a/2 b")),
            ("*/1", ("a/1", "c/1")),
            ("c/?.jpg", ("c/1", "c/3")),
            (["3", "a/2 b.jpg"], ("a/2 b", "c/3")),
            ([Path("a/1"), Path("c/1.jpg")], ("a/1", "c/1")),
            (["images/c/1.jpg", "data/images/a/2 b"], ("a/2 b", "c/1")),  # folders of another root in front
        ],
    )
    def test_patterns_and_lists(self, root, names, expected):
        dataset = SegmentationFolder(root, names=names)
        assert dataset.names == expected
        assert [why for _, why in dataset.left_out] == ["not in `names`"] * (4 - len(expected))

    def test_a_line_may_have_columns_or_spaces(self, root):
        for line, expected in (
            ("x/c/3.jpg y/a/1.jpg", "c/3"),  # the first column, although the line ends like another image
            ("x/c/3.jpg\ty/a/1.jpg", "c/3"),
            ("deep/a/2 b.jpg", "a/2 b"),
            ("2 b", "a/2 b"),
            ("two words/c/3.png", "c/3"),
        ):
            assert SegmentationFolder(root, names=[line]).names == (expected,)

    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            ("*[!k]", ("x", "y")),  # "x_mask.png" ends in another letter than "k"
            ("*[!k].png", ("x",)),
            ("*k.PNG", ("Z_mask",)),
            ("*.png", ("x", "x_mask")),
            ("*mask", ("Z_mask", "x_mask")),
        ],
    )
    def test_patterns_match_the_suffix_only_where_they_have_one(self, tmp_path, names, expected):
        for name in ("x.png", "x_mask.png", "y.jpg", "Z_mask.PNG"):
            put(tmp_path, name)
        assert SegmentationFolder(tmp_path, names=names).names == expected

    @pytest.mark.parametrize(
        "text",
        ["a/1\n2 b\n", "\ufeffa/1.jpg\r\n\r\n/a/2 b.jpg\r\n", "a/1.jpg masks/a/1.png\n./a/2 b\n", "a/2 b\na/1\n"],
    )
    def test_files(self, root, tmp_path, text):
        path = tmp_path / "split [1].txt"
        path.write_bytes(text.encode())
        for names in (path, str(path)):
            assert SegmentationFolder(root, names=names).names == ("a/1", "a/2 b")

    @pytest.mark.parametrize(
        ("names", "error", "message"),
        [
            ("b/*", ValueError, r"`names`: no image matches 'b/\*'; images are named a/1, a/2 b, c/1, c/3"),
            (
                "missing.txt",
                FileNotFoundError,
                "`names`: expected a file of names, or a pattern with .*, got missing.txt",
            ),
            (
                ["1"],
                ValueError,
                "`names`: 1 of 1 names match no image, or several: '1'; images are named a/1",
            ),  # whose?
            (
                ["c/3", "a/3"],
                ValueError,
                "`names`: 1 of 2 names match no image, or several: 'a/3'; images are named a/1",
            ),
            (["images/a/3.jpg"], ValueError, "`names`: 1 of 1 names match no image, or several: 'images/a/3.jpg'"),
            (["a/1", "a/1.jpg"], ValueError, "`names`: expected every name once, 'a/1' occurs twice"),
            ([], ValueError, "`names`: expected names, got none"),
        ],
    )
    def test_errors(self, root, names, error, message):
        with pytest.raises(error, match=message):
            SegmentationFolder(root, names=names)

    def test_empty_file(self, root, tmp_path):
        (tmp_path / "latin.txt").write_bytes("Süd\n".encode("latin-1"))
        with pytest.raises(ValueError, match=r"`names`: expected text in UTF-8 in .*latin.txt"):
            SegmentationFolder(root, names=tmp_path / "latin.txt")
        (tmp_path / "none.txt").write_text(" \n")
        with pytest.raises(ValueError, match=r"`names`: expected names in .*none.txt, found none"):
            SegmentationFolder(root, names=tmp_path / "none.txt")


class TestFolders:
    def test_none_and_no_images(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"`images`: expected a folder .*nowhere, found none"):
            SegmentationFolder(tmp_path / "nowhere")
        (tmp_path / "file").write_text("")
        with pytest.raises(FileNotFoundError, match=r"`images`: expected a folder .*file, found none"):
            SegmentationFolder(tmp_path / "file")
        (tmp_path / "data").mkdir()
        with pytest.raises(
            FileNotFoundError, match=r"`images`: expected images .* in .*data, found none: it holds noth"
        ):
            SegmentationFolder(tmp_path / "data")
        for name in ("a.dcm", "b.dcm", "c.npy", "README"):
            (tmp_path / "data" / name).write_text("x")
        with pytest.raises(FileNotFoundError, match=r"found none: it holds 2 × .dcm, 1 × no suffix, 1 × .npy"):
            SegmentationFolder(tmp_path / "data")
        put(tmp_path, "data/d.png")
        dataset = SegmentationFolder(tmp_path / "data")
        assert [why for _, why in dataset.left_out].count("not an image: ends in .dcm") == 2
        assert "left out: 2 × not an image: ends in .dcm" in str(dataset.verify())
        with pytest.raises(FileNotFoundError, match=r"`masks`: expected a folder .*nowhere, found none"):
            SegmentationFolder(tmp_path / "data", tmp_path / "nowhere", label_map=MAP)

    def test_links(self, tmp_path):
        put(tmp_path, "disk/a.png")
        (tmp_path / "images").mkdir()
        (tmp_path / "images/linked").symlink_to(tmp_path / "disk", target_is_directory=True)
        assert SegmentationFolder(tmp_path / "images").names == ("linked/a",)

    @pytest.mark.parametrize("target", ["..", ".", "loop"])
    def test_links_in_a_circle(self, tmp_path, target):
        put(tmp_path, "images/below/a.png")
        (tmp_path / "images/below/loop").symlink_to(target, target_is_directory=True)
        with pytest.raises(ValueError, match=r"`images`: .*below/loop.*remove the link"):
            SegmentationFolder(tmp_path / "images")
        put(tmp_path, "others/a.png")
        with pytest.raises(ValueError, match=r"`masks`: .*below/loop.*remove the link"):
            SegmentationFolder(tmp_path / "others", tmp_path / "images", label_map=MAP)

    def test_links_to_nothing(self, tmp_path):
        (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
        with pytest.raises(FileNotFoundError, match=r"a\.png"):
            SegmentationFolder(tmp_path)[0]

    def test_names_that_are_no_unicode(self, tmp_path):
        try:
            (tmp_path / os.fsdecode(b"\xff\xfe.png")).write_bytes(files.encoded(PICTURE, "PNG"))
        except OSError:
            pytest.skip("this file system has names in Unicode only")
        assert SegmentationFolder(tmp_path)[0][0].shape == (3, 2, 4)


def in_presets(root, suffix):
    """Each preset, with one image whose suffix is as given in its own or in capitals."""
    yield trees.gta5, GTA5, "images/00002.png", {}
    yield trees.synthia, SYNTHIA, "RGB/0000001.png", {}
    yield trees.cityscapes, Cityscapes, "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png", {}
    yield trees.bdd100k, BDD100K, "images/10k/train/00000001-00000000.jpg", {}
    yield trees.voc, VOCSegmentation, "JPEGImages/2007_000001.jpg", {}
    yield trees.gta5, GTA5, "labels/00002.png", {}
    yield trees.bdd100k, BDD100K, "labels/sem_seg/masks/train/00000001-00000000.png", {}
    yield trees.voc, VOCSegmentation, "SegmentationClass/2007_000001.png", {}


@pytest.mark.parametrize("case", range(8))
def test_presets_take_suffixes_in_any_case(tmp_path, case):
    write, make, place, _ = [*in_presets(tmp_path, "")][case]
    write(tmp_path)
    before = [labels for _, labels in make(tmp_path)]
    path = tmp_path / place
    path.rename(path.with_suffix(path.suffix.upper()))
    dataset = make(tmp_path)
    assert len(dataset) == len(before) > 1
    assert all(torch.equal(labels, old) for (_, labels), old in zip(dataset, before, strict=True))
    dataset.verify()
    if path.suffix == ".jpg":
        path.with_suffix(".JPG").rename(path.with_suffix(".jpeg"))
        assert make(tmp_path).names == dataset.names
        path.with_suffix(".jpg").write_bytes(b"")
        with pytest.raises(ValueError, match="`root`: expected one file named"):
            make(tmp_path)


@pytest.mark.parametrize("make", [GTA5, SYNTHIA, BDD100K, Cityscapes, VOCSegmentation])
def test_presets_say_what_they_leave_out(tmp_path, make):
    name = {"VOCSegmentation": "voc"}.get(make.__name__, make.__name__.lower())
    getattr(trees, name)(tmp_path)
    dataset = make(tmp_path)
    assert dataset.left_out == []
    other = dataset._image_path(dataset.names[0]).with_name("other.txt")
    other.write_text("x")
    ((path, why),) = make(tmp_path).left_out
    assert path == other
    assert why.startswith("does not end in ")


class TestIds:
    @pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
    def test_raw_values_of_any_depth(self, tmp_path, bits):
        """Pillow gives 4-bit ids times 17, and 2-bit ids times 85."""
        count = min(2**bits, 300)
        ids = np.arange(count).reshape(2, -1)
        label_map = LabelMap.from_names(
            {number: f"class {number}" for number in range(min(count, 250))}, unknown="ignore"
        )
        for name, data in (("a.png", files.png(ids, bits)), ("a.tif", files.tiff(ids.astype(np.uint16), bits=bits))):
            root = tmp_path / name
            put(root, "images/a.png", np.zeros((*ids.shape, 3), np.uint8))
            put(root, f"masks/{name}", data)
            dataset = SegmentationFolder(root / "images", root / "masks", label_map=label_map)
            expected = np.where(ids < 250, ids, 255)
            assert dataset[0][1].tolist() == expected.tolist()

    @pytest.mark.parametrize("bits", [2, 4])
    @pytest.mark.parametrize("make", [GTA5, SYNTHIA])
    def test_presets(self, tmp_path, make, bits):
        write = trees.gta5 if make is GTA5 else trees.synthia
        write(tmp_path)
        ids = np.arange(60).reshape(trees.SIZE) % 2**bits
        (label,) = [path for path in tmp_path.rglob("*.png") if "abel" in str(path).lower() and path.stem[-1] == "1"]
        label.write_bytes(files.png(ids, bits))
        dataset = make(tmp_path)
        expected = dataset.label_map(torch.from_numpy(ids))
        assert torch.equal(dataset[dataset.names.index(label.stem)][1], expected)

    def test_gaps(self, tmp_path):
        assert pair(tmp_path, IDS)[0][1].tolist() == EXPECTED

    def test_unknown_ids_with_count_and_place(self, tmp_path):
        wrong = IDS.copy()
        wrong[1, 2:] = 3
        dataset = pair(tmp_path, wrong)
        refuses(dataset, r"masks/mask.png: .* got 3 \(2 pixels, the first at \(1, 2\)\)")

    def test_retina_as_it_is_published(self, tmp_path):
        """DRIVE's images are TIFF, its masks GIF of black and white with names of their own."""
        mask = np.array([[0, 255, 255, 0], [0, 0, 0, 255]], np.uint8)
        put(tmp_path, "images/21_training.tif")
        put(tmp_path, "1st_manual/21_manual1.gif", mask)
        dataset = SegmentationFolder(
            tmp_path / "images",
            tmp_path / "1st_manual",
            label_map=LabelMap.binary("vessel"),
            pair=lambda name: name.replace("training", "manual1") + ".gif",
        )
        assert dataset[0][1].tolist() == (mask // 255).tolist()

    def test_white_is_zero(self, tmp_path):
        (tmp_path / "masks").mkdir()
        dataset = pair(tmp_path, files.tiff(IDS // 255, photometric=0), "mask.tif")
        refuses(dataset, r"mask.tif: a TIFF that stores white as 0 .*; save it as PNG")

    def test_floats(self, tmp_path):
        data = files.encoded(IDS.astype(np.float32), "TIFF")
        (tmp_path / "masks").mkdir()
        refuses(pair(tmp_path, data, "mask.tif"), r"mask.tif: expected integers, got float32; save the ids as integers")

    def test_jpeg(self, tmp_path):
        """Ids of a JPEG are not those that were drawn."""
        (tmp_path / "masks").mkdir()
        dataset = pair(tmp_path, files.encoded(IDS, "JPEG"), "mask.JPG")
        refuses(
            dataset,
            r"mask.JPG: expected a PNG file, .* got a JPEG, which changes values at every edge; export .* PNG",
        )

    def test_size(self, tmp_path):
        refuses(pair(tmp_path, IDS[:, :3]), r"mask.png: expected \(H, W\) = \(2, 4\) as in .*mask.png, got \(2, 3\)$")

    def test_size_after_an_orientation(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        put(tmp_path, "images/a.jpg", exif=exif)
        put(tmp_path, "masks/a.png", IDS)
        dataset = SegmentationFolder(tmp_path / "images", tmp_path / "masks", label_map=MAP)
        refuses(dataset, r"a.png: expected \(H, W\) = \(4, 2\) .*; the image was turned by its EXIF orientation")
        put(tmp_path, "masks/a.png", np.rot90(IDS, -1).copy())
        assert dataset[0][1].tolist() == np.rot90(np.array(EXPECTED), -1).tolist()
        assert dataset.verify().turned == 1

    def test_truncated_and_animated(self, tmp_path):
        dataset = pair(tmp_path, IDS)
        trees.truncate(tmp_path / "masks/mask.png")
        refuses(dataset, r"masks/mask.png: broken")
        frames = [Image.fromarray(IDS), Image.fromarray(IDS[::-1].copy())]
        frames[0].save(tmp_path / "masks/mask.png", save_all=True, append_images=frames[1:])
        refuses(dataset, r"masks/mask.png: holds 2 frames or pages; expected one image")
        (tmp_path / "masks/mask.png").write_bytes(b"")
        refuses(dataset, r"masks/mask.png: empty")


class TestColours:
    def rgb(self):
        return PALETTE[IDS]

    @pytest.mark.parametrize("label_map", [COLOURED, BY_COLOUR])
    @pytest.mark.parametrize("name", ["mask.png", "mask.tif", "mask.bmp"])
    def test_rgb(self, tmp_path, label_map, name):
        assert pair(tmp_path, self.rgb(), name, label_map)[0][1].tolist() == EXPECTED
        (tmp_path / "masks" / name).unlink()
        rgba = np.dstack((self.rgb(), np.arange(8).reshape(2, 4).astype(np.uint8)))
        assert pair(tmp_path, rgba, label_map=label_map)[0][1].tolist() == EXPECTED

    def test_unknown(self, tmp_path):
        wrong = self.rgb()
        wrong[1, 1:] = (1, 2, 3)
        wrong[0, 0] = (9, 9, 9)
        message = r"mask.png: expected colours of the label map, got \(1, 2, 3\) in 3 pixels, \(9, 9, 9\) in 1 pixel"
        refuses(pair(tmp_path, wrong, label_map=BY_COLOUR), message + ", the first at row 0, column 0")
        lenient = LabelMap.from_colours({colour: name for name, colour in COLOURS.items()}, unknown="ignore")
        assert pair(tmp_path, wrong, label_map=lenient)[0][1].tolist() == [[255, 1, 2, 3], [0, 255, 255, 255]]

    def test_ids_in_three_equal_channels(self, tmp_path):
        """As programs save grey: no other reading makes sense of them."""
        grey = np.stack([IDS] * 3, -1)
        for label_map in (MAP, COLOURED, dataclasses.replace(COLOURED, unknown="ignore")):
            assert pair(tmp_path, grey, label_map=label_map)[0][1].tolist() == EXPECTED
        assert pair(tmp_path, grey).verify().ids == tuple(CLASSES)

    def test_red_values_are_no_ids(self, tmp_path):
        assert pair(tmp_path, self.rgb(), label_map=COLOURED).verify().ids == ()
        first = pair(tmp_path, np.stack((IDS, 0 * IDS, IDS), -1), read_masks="first")
        assert first.verify().ids == tuple(CLASSES)

    def test_three_channels_are_no_ids(self, tmp_path):
        other = np.stack((IDS, 0 * IDS, IDS), -1)
        message = (
            r"mask.png: expected one channel of class ids, got 3 channels of torch.uint8, and the label map has no col"
        )
        refuses(pair(tmp_path, other), message)
        refuses(pair(tmp_path, other, label_map=COLOURED), "mask.png: expected colours of the label map")
        refuses(
            pair(tmp_path, other, read_masks="ids"), r'expected one channel of class ids, got 3 .*read_masks="first"'
        )
        assert pair(tmp_path, other, read_masks="first")[0][1].tolist() == EXPECTED

    def test_binary(self, tmp_path):
        label_map = LabelMap.binary("vessel")
        mask = np.array([[0, 1, 1, 0], [0, 0, 0, 1]], np.uint8)
        for values in (mask, 255 * mask, mask.astype(bool), np.stack([255 * mask] * 3, -1)):
            for reading in ("auto", "colours") if values.max() != 1 or values.dtype == bool else ("auto", "ids"):
                labels = pair(tmp_path, values, label_map=label_map, read_masks=reading)[0][1]
                assert labels.tolist() == mask.tolist()
        refuses(pair(tmp_path, mask * 7, label_map=label_map), r"got 7 \(3 pixels, the first at \(0, 1\)\)")

    def test_no_colours(self, tmp_path):
        refuses(pair(tmp_path, IDS, read_masks="colours"), r"mask.png: expected a label map with colours")


class TestPalettes:
    def test_the_expected_one(self, tmp_path):
        for label_map in (COLOURED, BY_COLOUR, MAP):
            assert pair(tmp_path, IDS, label_map=label_map, palette=PALETTE)[0][1].tolist() == EXPECTED

    def test_another_order_is_read_by_colour(self, tmp_path):
        """Indices 0 to 3 in the label map's colours: by index, water would be unknown and ground right by accident."""
        order = np.array(EXPECTED, np.uint8)
        palette = palette_of(dict(enumerate(COLOURS.values())))
        assert pair(tmp_path, order, label_map=COLOURED, palette=palette)[0][1].tolist() == EXPECTED
        turned = palette_of({0: COLOURS["tree"], 2: COLOURS["roof"], 7: COLOURS["water"], 40: COLOURS["ground"]})
        labels = pair(tmp_path, IDS, label_map=COLOURED, palette=turned)[0][1]
        assert labels.tolist() == [[3, 2, 1, 0], [3, 3, 2, 2]]
        assert pair(tmp_path, IDS, label_map=COLOURED, palette=turned, read_masks="ids")[0][1].tolist() == EXPECTED

    def test_a_cache_knows_how_masks_are_read(self, tmp_path):
        reversed_palette = palette_of(dict(zip(CLASSES, reversed(COLOURS.values()), strict=True)))
        pair(tmp_path, IDS, palette=reversed_palette)
        for read_masks, expected in (("auto", [1, 1, 3, 3]), ("ids", [3, 3, 1, 1])):
            dataset = SegmentationFolder(
                tmp_path / "images", tmp_path / "masks", label_map=COLOURED, read_masks=read_masks
            )
            index = ClassIndex.from_masks(dataset.masks(), 4, cache=tmp_path / "index")
            assert index.counts.tolist() == [expected]

    def test_a_stranger_is_refused(self, tmp_path):
        palette = np.random.default_rng(3).integers(0, 256, (256, 3))
        message = r"mask.png: its palette is not the label map's: index 0 is drawn in \(\d+, \d+, \d+\), but id "
        refuses(
            pair(tmp_path, IDS, label_map=COLOURED, palette=palette),
            message + r"0 in the label map is ground, in \(10, 20, 30\); .*ids",
        )
        assert pair(tmp_path, IDS, palette=palette)[0][1].tolist() == EXPECTED  # a map without colours expects none

    def test_palettes_that_say_nothing(self, tmp_path):
        for palette in (np.zeros((256, 3)), np.arange(256)[:, None].repeat(3, 1)):
            assert pair(tmp_path, IDS, label_map=COLOURED, palette=palette)[0][1].tolist() == EXPECTED

    def test_presets(self, tmp_path):
        """A palette that is not GTA5's is refused, where it was read by index; train ids in its colours are seen."""
        trees.gta5(tmp_path)
        ids = np.arange(60, dtype=np.uint8).reshape(trees.SIZE) % 35
        dataset = GTA5(tmp_path)
        trees.save(tmp_path / "labels/00001.png", ids, trees.voc_palette())
        with pytest.raises(ValueError, match=r"00001.png: its palette is not the label map's: index 7 is drawn in"):
            dataset[0]
        train_ids = ids % 19
        by_train_id = palette_of(
            {entry.train_id: entry.color for entry in trees.CITYSCAPES if 0 <= entry.train_id < 19}
        )
        trees.save(tmp_path / "labels/00001.png", train_ids, by_train_id)
        assert dataset[0][1].tolist() == train_ids.tolist()
        trees.save(tmp_path / "labels/00001.png", train_ids % 6, by_train_id)  # none of these is a class as a label id
        assert dataset[0][1].tolist() == (train_ids % 6).tolist()


class TestMeaning:
    """Train ids where label ids are expected pass as ids, and mean other classes."""

    @pytest.mark.parametrize("make", [GTA5, SYNTHIA, Cityscapes])
    def test_train_ids(self, tmp_path, make):
        write = {GTA5: trees.gta5, SYNTHIA: trees.synthia, Cityscapes: trees.cityscapes}[make]
        write(tmp_path)
        dataset = make(tmp_path)
        assert dataset.verify().labelled > 0.4
        train_ids = np.arange(60, dtype=np.uint8).reshape(trees.SIZE) % 19
        for name in dataset.names:
            trees.save(dataset._label_path(name), train_ids)
        message = (
            r"only ids from 0 to 18 occur in \d files, which look like Cityscapes' train ids \(\d\d\.\d % of the pix"
        )
        with pytest.raises(ValueError, match=message):
            dataset.verify()
        assert len(dataset.verify(check_meaning=False).ids) == 19
        assert make(tmp_path, label_map=LabelMap.bdd100k()).verify().labelled == 1

    def test_train_ids_with_255(self, tmp_path):
        trees.cityscapes(tmp_path)
        dataset = Cityscapes(tmp_path)
        trees.save(dataset._label_path(dataset.names[0]), np.resize(np.array([0, 1, 13, 255], np.uint8), trees.SIZE))
        with pytest.raises(
            ValueError, match=r"got 255 .*; these look like Cityscapes' train ids, which LabelMap.bdd100k"
        ):
            dataset[0]

    def test_cityscapes_train_ids(self, tmp_path):
        ids = trees.cityscapes(tmp_path)
        by_label = Cityscapes(tmp_path)
        for name, labels in zip(by_label.names, by_label.masks(), strict=True):
            path = by_label._label_path(name)
            trees.save(
                path.with_name(path.name.replace("labelIds", "labelTrainIds")), np.asarray(labels).astype(np.uint8)
            )
        by_train = Cityscapes(tmp_path, ids="train")
        assert by_train.label_map == LabelMap.bdd100k()
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(by_train, by_label, strict=True))
        assert len(by_train) == len(ids)
        by_train.verify()
        with pytest.raises(ValueError, match="`ids`: expected one of 'label', 'train', got 'trainIds'"):
            Cityscapes(tmp_path, ids="trainIds")

    def test_nearly_all_ignored(self, tmp_path):
        label_map = LabelMap.from_names({1: "vessel", 0: None})
        mask = np.zeros((2, 4), np.uint8)
        with pytest.raises(
            ValueError, match=r"nearly all labels are ignored: 0.0 % of the pixels have a class; ids in the"
        ):
            pair(tmp_path, mask, label_map=label_map).verify()
        mask[0, 0] = 1  # one in eight, as scribbles have it
        assert pair(tmp_path, mask, label_map=label_map).verify().labelled == 1 / 8

    def test_own_ids_that_begin_at_one(self, tmp_path):
        """Few of many classes in a folder are no train ids."""
        label_map = LabelMap.from_names({number: f"class {number}" for number in range(1, 30)})
        assert pair(tmp_path, IDS % 3 + 1, label_map=label_map).verify().ids == (1, 2, 3)


class TestVerify:
    def test_report_of_the_worlds(self, tmp_path):
        worlds.write(tmp_path, count=3, size=32)
        root = tmp_path / "aerial/source"
        label_map = LabelMap.load(tmp_path / "aerial/classes.json")
        dataset = SegmentationFolder(root / "images", root / "masks", label_map=label_map, channels=None)
        report = dataset.verify()
        masks = [np.array(Image.open(path)) for path in sorted((root / "masks").iterdir())]
        assert report.samples == 3
        assert report.sizes == {(64, 64): 3}
        assert (report.channels, report.bits) == ({4: 3}, {8: 3})
        assert report.classes == tuple(worlds.AERIAL.values())
        assert report.pixels == tuple(sum(int((mask == key).sum()) for mask in masks) for key in worlds.AERIAL)
        assert report.images_with == tuple(sum(int((mask == key).any()) for mask in masks) for key in worlds.AERIAL)
        assert (report.ignored, report.labelled, report.ids) == (0, 1.0, tuple(worlds.AERIAL))
        table = str(report)
        assert "images                  3\n" in table
        for name, pixels in zip(report.classes, report.pixels, strict=True):
            assert any(line.split()[:2] == [name, str(pixels)] for line in table.splitlines())
        only = dataset.verify(images=False, most=2)
        assert (only.samples, only.sizes, sum(only.pixels)) == (2, {}, 2 * 64 * 64)
        with pytest.raises(ValueError, match="`most`: expected at least 1, got 0"):
            dataset.verify(most=0)

    def test_twelve_bits(self, tmp_path):
        (tmp_path / "a.png").write_bytes(files.png(np.full((2, 4), 4095), 16))
        assert "very dark: is `white` lower than 65535?" in str(SegmentationFolder(tmp_path).verify())
        assert "dark" not in str(SegmentationFolder(tmp_path, white=4095).verify())
        put(tmp_path, "b.png")
        mixed = "bits per channel        8 (1 images), 16 (1 images); bring them to one range with v2.ToDtype"
        assert mixed in str(SegmentationFolder(tmp_path).verify())

    def test_without_labels(self, tmp_path):
        put(tmp_path, "a.png")
        report = SegmentationFolder(tmp_path).verify()
        assert (report.labelled, report.classes, report.values) == (None, (), (0, 23))

    def test_labels_of_a_function(self, tmp_path):
        put(tmp_path, "a.png")
        for value, message in ((4, "got 4 to 4"), (-1, "got -1 to -1")):
            dataset = SegmentationFolder(tmp_path, lambda name, value=value: torch.full((2, 4), value), label_map=MAP)
            with pytest.raises(BrokenFilesError, match=rf"`labels\('a'\)`: expected classes in \[0, 4\) .*{message}"):
                dataset.verify()
        assert SegmentationFolder(tmp_path, lambda name: torch.full((2, 4), 255), label_map=MAP).verify().labelled == 0


class TestArguments:
    def test_label_map(self, tmp_path):
        put(tmp_path, "a.png")
        with pytest.raises(
            ValueError,
            match=r"`label_map`: expected a label map to read masks, got None; make one with LabelMap.binary",
        ):
            SegmentationFolder(tmp_path, tmp_path, mask_suffix="_m")
        with pytest.raises(TypeError, match="`label_map`: expected a LabelMap, got dict"):
            SegmentationFolder(tmp_path, label_map={0: "a"})
        with pytest.raises(ValueError, match="`label_map`: expected a data set with a label map"):
            _ = SegmentationFolder(tmp_path).num_classes
        assert SegmentationFolder(tmp_path, label_map=MAP).num_classes == 4

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"mask_suffix": "_m", "pair": str}, ValueError, "`pair`: expected either this or `mask_suffix`, got both"),
            ({"unpaired": "skip"}, ValueError, "`unpaired`: expected one of 'error', 'leave out', got 'skip'"),
            ({"read_masks": "rgb"}, ValueError, "`read_masks`: expected one of 'auto', 'ids', 'first', 'colours'"),
            ({"white": 0}, ValueError, "`white`: expected at least 1, got 0"),
        ],
    )
    def test_others(self, tmp_path, options, error, message):
        put(tmp_path, "a.png")
        with pytest.raises(error, match=message):
            SegmentationFolder(tmp_path, **options)

    def test_pseudo_labels_and_transforms(self, tmp_path):
        put(tmp_path, "a.png")
        dataset = SegmentationFolder(
            tmp_path, lambda name: torch.tensor(EXPECTED), label_map=MAP, transforms=v2.RandomHorizontalFlip(1.0)
        )
        image, labels = dataset[0]
        assert type(labels) is tv_tensors.Mask
        assert labels.tolist() == [row[::-1] for row in EXPECTED]
        assert torch.equal(image.flip(2), torch.from_numpy(PICTURE).permute(2, 0, 1))
        with pytest.raises(ValueError, match="`labels`: expected a data set with labels"):
            SegmentationFolder(tmp_path).masks()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return worlds.write(tmp_path_factory.mktemp("worlds"), count=4, size=32)


def test_command(tmp_path):
    run = [sys.executable, "-m", "tests.worlds", tmp_path / "my w", "--count", "1", "--size", "32"]
    root = Path(worlds.__file__).parent.parent
    done = subprocess.run(run, check=True, timeout=300, cwd=root, capture_output=True, text=True, encoding="utf-8")
    assert sorted(path.name for path in (tmp_path / "my w").iterdir()) == ["aerial", "fundus", "streets"]
    commands = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("python ")]
    assert [command[command.index("--out") + 1] for command in commands] == [
        f"runs/{world}" for world in ("fundus", "aerial", "streets")
    ]
    for command in commands:
        assert (root / command[1]).is_file()
        paths = [Path(word) for word in command if str(tmp_path) in word]
        assert len(paths) >= 4
        assert all(path.exists() for path in paths)


class TestWorlds:
    @pytest.fixture
    def root(self, world):
        return world

    def test_the_same_bytes_again(self, root, tmp_path):
        worlds.write(tmp_path, count=4, size=32)
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            assert (tmp_path / path.relative_to(root)).read_bytes() == path.read_bytes()

    def test_fundus(self, root):
        fundus = root / "fundus"
        label_map = LabelMap.load(fundus / "classes.csv")
        source = SegmentationFolder(fundus / "source/images", fundus / "source/masks", label_map=label_map)
        target = SegmentationFolder(fundus / "target/images", label_map=label_map)
        val = SegmentationFolder(
            fundus / "target/images", fundus / "target/masks", label_map=label_map, names=fundus / "val.txt"
        )
        assert (len(source), len(target), len(val)) == (4, 4, 1)
        assert source.classes == tuple(worlds.FUNDUS)
        assert source.verify().bits == {16: 4}
        assert 0.1 < source[0][0].mean() < 0.9
        assert target[0][0].dtype == torch.uint8
        assert all(count == 4 for count in source.verify().images_with)
        assert val.verify().labelled == 1

    def test_streets(self, root):
        label_map = LabelMap.load(root / "streets/classes.json")
        day = root / "streets/day/train"
        source = SegmentationFolder(day, day, label_map=label_map, mask_suffix="_mask")
        assert source.names == ("north/001", "north/003", "south/000", "south/002")
        assert source.verify().labelled == 1
        night = SegmentationFolder(root / "streets/night/train")
        assert night[0][0].float().mean() < 0.5 * source[0][0].float().mean()

    def test_workers(self, root):
        aerial = root / "aerial/source"
        label_map = LabelMap.load(root / "aerial/classes.json")
        dataset = SegmentationFolder(aerial / "images", aerial / "masks", label_map=label_map, channels=4)
        loader = DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context=get_context("fork"))
        for number, (images, labels) in enumerate(loader):
            assert torch.equal(images[1], dataset[2 * number + 1][0])
            assert torch.equal(labels[0], dataset[2 * number][1])
        copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301
        assert torch.equal(copy[0][1], dataset[0][1])
