"""Errors about the user's files, provoked with real files, as the users of the command line read them."""

from __future__ import annotations

import dataclasses
import re
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from selftrain_seg.datasets import LabelMap, SegmentationFolder
from tests.examples.trainers import EXAMPLES

NAMES = "--source-names, --target-names or --val-names"


@pytest.fixture(autouse=True)
def common(monkeypatch):
    """Lets a test import what the examples share."""
    monkeypatch.syspath_prepend(EXAMPLES)


def save(path, *shape, value=0, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full(shape or (4, 8), value) if value is not None else np.arange(np.prod(shape)).reshape(shape)
    Image.fromarray(pixels.astype(dtype)).save(path)


def pair(root):
    for name in "ab":
        save(root / "images" / f"{name}.png", 4, 8, 3)
        save(root / "masks" / f"{name}.png")


def nothing(root):
    pass


def no_mask(root):
    (root / "masks" / "b.png").unlink()


def no_images(root):
    for path in (root / "images").iterdir():
        path.rename(path.with_suffix(".txt"))


def same_name(root):
    save(root / "images" / "b.bmp")


def int32(root):
    (root / "images" / "b.png").unlink()
    save(root / "images" / "b.tif", dtype=np.int32)


def dark(root):
    save(root / "images" / "b.png", value=5000, dtype=np.uint16)


def frames(root):
    (root / "images" / "b.png").unlink()
    pages = [Image.new("L", (8, 4), number) for number in (0, 200)]
    pages[0].save(root / "images" / "b.gif", save_all=True, append_images=pages[1:])


def large(root):
    save(root / "images" / "b.png", 40, 80, 3)


def mask_of_five_channels(root):
    import tifffile

    (root / "masks" / "b.png").unlink()
    pixels = np.zeros((4, 8, 5), np.uint8)
    tifffile.imwrite(root / "masks" / "b.tif", pixels, photometric="minisblack", planarconfig="contig")


def mask_in_colours(root):
    save(root / "masks" / "b.png", 4, 8, 3, value=None)


def mask_with_a_palette(root):
    mask = Image.fromarray(np.arange(32, dtype=np.uint8).reshape(4, 8) % 2)
    mask.putpalette([9, 9, 9, 0, 0, 200])
    mask.save(root / "masks" / "b.png")


def unknown_id(root):
    save(root / "masks" / "b.png", value=7)


def ignored(root):
    for name in "ab":
        save(root / "masks" / f"{name}.png", value=3)


def train_ids(root):
    for name in "ab":
        save(root / "masks" / f"{name}.png", value=8)


def train_ids_and_255(root):
    pixels = np.full((4, 8), 255, np.uint8)
    pixels[0] = range(8)
    Image.fromarray(pixels).save(root / "masks" / "b.png")


PLAIN = LabelMap.from_names({0: "ground", 1: "tree", 3: None})
COLOURED = LabelMap.from_names({0: "ground", 1: "tree"}, colours={"ground": (0, 0, 0), "tree": (0, 200, 0)})
STREETS = LabelMap.cityscapes()

# What is done to two images with masks, arguments of SegmentationFolder, and what users of the trainers read.
CASES = [
    (
        no_mask,
        {},
        "1 of 2 images have no mask: b; expected /masks/b.png (or another suffix); there are a.png. Set --mask-suffix "
        f"if masks have other names, {NAMES} to select images, or --leave-out-unpaired to skip images without a mask",
    ),
    (nothing, {"names": "x*"}, f"{NAMES}: no image matches 'x*'; images are named a, b"),
    (
        nothing,
        {"names": ["a", "c"]},
        f"{NAMES}: 1 of 2 names match no image, or several: 'c'; images are named a, b",
    ),
    (nothing, {"masks": "nowhere"}, "expected a folder /nowhere, found none"),
    (
        no_images,
        {},
        "expected images (.png .jpg .jpeg .tif .tiff .bmp .webp .gif) in /images, found none: it holds 2 × .txt",
    ),
    (same_name, {}, "expected one file named 'b', got two: /images/b.bmp and /images/b.png; remove one"),
    (
        same_name,
        {"masks": "images"},
        "expected one file named 'b', got two: /images/b.bmp and /images/b.png; remove one, or tell masks from images "
        "with --mask-suffix",
    ),
    (nothing, {"channels": 5}, "/images/a.png: expected 5 channels, got 3; --channels 3 keeps all"),
    (
        int32,
        {},
        "/images/b.tif: int32 has no standard value of white: expected 8 or 16 bits or floating point, or --white, the "
        "value that is scaled to 1",
    ),
    (dark, {"white": 4095}, "/images/b.png: expected values from 0 to --white 4095, got 5000 to 5000"),
    (
        frames,
        {},
        "/images/b.gif: holds 2 frames or pages; expected one image: save the one you want as a separate file",
    ),
    (
        large,
        {},
        "/images/b.png: larger than Pillow's limit against decompression bombs (Image size (3200 pixels) exceeds limit "
        "of 2000 pixels, could be decompression bomb DOS attack.); cut the image into tiles",
    ),
    (
        mask_of_five_channels,
        {},
        "/masks/b.tif: expected one channel of class ids, got 5 channels of torch.uint8; --read-masks first reads the "
        "first channel",
    ),
    (
        mask_in_colours,
        {},
        "/masks/b.png: expected one channel of class ids, got 3 channels of torch.uint8, and the label map has no "
        "colours; give it some (columns r, g, b in a .csv file for --classes), or read the first channel with "
        "--read-masks first",
    ),
    (
        mask_with_a_palette,
        {"label_map": COLOURED},
        "/masks/b.png: its palette is not the label map's: index 0 is drawn in (9, 9, 9), but id 0 in the label map is "
        "ground, in (0, 0, 0); --read-masks first reads the indices and ignores the palette",
    ),
    (
        unknown_id,
        {},
        "/masks/b.png: expected ids of LabelMap(2 classes, 3 ids from 0 to 3), got 7 (32 pixels, the first at (0, 0))",
    ),
    (
        ignored,
        {},
        "nearly all labels are ignored: 0.0 % of the pixels have a class; ids in the files: 3; list them in the file "
        "for --classes (--data folders); --no-check-meaning accepts them",
    ),
    (
        train_ids,
        {"label_map": STREETS},
        "expected label ids, up to 34, but only ids from 8 to 8 occur in 2 files, which look like Cityscapes' train "
        "ids (100.0 % of the pixels have a class); read those with a file for --classes with the ids 0 to 18 (--data "
        "folders); --no-check-meaning accepts them",
    ),
    (
        train_ids_and_255,
        {"label_map": STREETS},
        "/masks/b.png: expected ids of LabelMap(19 classes, 36 ids from -1 to 34), got 255 (24 pixels, the first at "
        "(1, 0)); these look like Cityscapes' train ids, which a file for --classes with the ids 0 to 18 (--data "
        "folders) reads",
    ),
]


def provoked(root, change, given):
    """The error of the library."""
    pair(root)
    change(root)
    given = {"label_map": PLAIN, "masks": "masks", **given}
    masks = root / given.pop("masks")
    with pytest.raises((OSError, ValueError)) as caught:
        read(SegmentationFolder(root / "images", masks, **given))
    return caught.value


def read(dataset):
    for place in range(len(dataset)):
        dataset[place]
    dataset.verify()


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)


@pytest.mark.parametrize(("change", "given", "message"), CASES)
def test_errors_of_the_library_speak_of_options(small_limit, tmp_path, change, given, message):
    from _common.advice import in_options
    from _common.settings import Settings

    found = in_options(provoked(tmp_path, change, given)).replace(str(tmp_path), "")
    assert found.partition("\n")[0] == message  # a table may follow
    assert "`" not in found
    fields = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Settings)}
    assert set(re.findall(r"(?<!\w)--[\w-]+", message.replace("--no-", "--"))) <= fields


CLASS_FILES = [
    ("classes.txt.json", None, "expected a file /classes.txt.json, found none"),
    ("classes.json", "[1]", "/classes.json: expected a class as a name or a mapping, got 1"),
    (
        "classes.json",
        '[{"name": "a", "id": 0, "colour": [0, 0, 300]}]',
        "/classes.json: colour: expected colours of three values in [0, 255], got (0, 0, 300)",
    ),
    (
        "classes.json",
        '{"classes": ["a", "b"], "ignore_index": 1}',
        "/classes.json: ignore_index: expected a value outside [0, 2), got 1",
    ),
    ("classes.csv", "id;name\n0;a\n70000;b\n", "/classes.csv: ids: expected ids in [-32768, 65536), got 70000"),
]


@pytest.mark.parametrize(("name", "text", "message"), CLASS_FILES)
def test_errors_in_files_of_classes(tmp_path, name, text, message):
    from _common.advice import in_options

    assert in_options(not_loaded(tmp_path / name, text)).replace(str(tmp_path), "") == message


def not_loaded(path, text):
    """The error of the library about a file of classes."""
    if text is not None:
        path.write_text(text)
    with pytest.raises((OSError, ValueError)) as caught:
        LabelMap.load(path)
    return caught.value


def test_too_few_images_to_label_one_in_many(tmp_path):
    from _common.advice import in_options

    assert in_options(too_few(tmp_path)) == "--labelled: expected at most 1 samples, got 106"


def too_few(root):
    """The error of the library about a share of too few images."""
    save(root / "few" / "a.png", 4, 8, 3)
    with pytest.raises(ValueError, match="at most 1") as caught:
        SegmentationFolder(root / "few").draw_labelled(106)
    return caught.value


IN_PREDICTION = {
    no_mask: "1 of 2 images have no mask: b; expected /masks/b.png (or another suffix); there are a.png. Set "
    "--mask-suffix if masks have other names, --names to select images, or --partial to leave out images without a "
    "mask",
    mask_of_five_channels: "/masks/b.tif: expected one channel of class ids, got 5 channels of torch.uint8; save the "
    "masks with one channel",
    mask_in_colours: "/masks/b.png: expected one channel of class ids, got 3 channels of torch.uint8, and the label "
    "map has no colours; give it some (columns r, g, b in a .csv file for --classes), or save the masks with one "
    "channel",
    mask_with_a_palette: "/masks/b.png: its palette is not the label map's: index 0 is drawn in (9, 9, 9), but id 0 in "
    "the label map is ground, in (0, 0, 0); save the masks without a palette if the indices are ids",
    train_ids_and_255: "/masks/b.png: expected ids of LabelMap(19 classes, 36 ids from -1 to 34), got 255 (24 pixels, "
    "the first at (1, 0)); these look like Cityscapes' train ids, which --classes bdd100k reads",
}


@pytest.mark.parametrize("change", IN_PREDICTION)
def test_prediction_and_evaluation_name_their_own_options(tmp_path, change):
    from _prediction.options import in_options

    given = next(given for case, given, _ in CASES if case is change)
    assert in_options(provoked(tmp_path, change, given)).replace(str(tmp_path), "") == IN_PREDICTION[change]


# evaluate.py reads masks without ``verify``.
@pytest.mark.parametrize(("change", "given"), [case[:2] for case in CASES if case[0] not in (ignored, train_ids)])
def test_prediction_and_evaluation_have_every_option_that_is_named(small_limit, tmp_path, change, given):
    import argparse

    from _prediction.options import add_options, in_options

    parser = argparse.ArgumentParser()
    parser.add_argument("--partial")  # of evaluate.py
    add_options(parser)
    message = in_options(provoked(tmp_path, change, given))
    named = set(re.findall(r"(?<!\w)--[\w-]+", message))
    assert named <= {*parser._option_string_actions}
    assert "`" not in message


def test_the_library_prints_what_is_translated(small_limit, tmp_path):
    """A pattern that matches no error is out of date."""
    from _common.advice import ADVICE
    from _prediction.options import ADVICE as OF_PREDICTION

    texts = [str(too_few(tmp_path)), *(str(not_loaded(tmp_path / name, text)) for name, text, _ in CLASS_FILES)]
    for number, (change, given, _) in enumerate(CASES):
        texts.append(str(provoked(tmp_path / str(number), change, given)))
    patterns = [*ADVICE, *OF_PREDICTION]
    assert [pattern for pattern in patterns if not any(re.search(pattern, text) for text in texts)] == []


@pytest.mark.parametrize("domain", ["source", "target", "val"])
def test_the_option_of_the_domain_is_named(tmp_path, domain):
    message = refused(tmp_path, nothing, **{f"{domain}_names": "x*"})
    assert message == f"--data folders: --{domain}-names: no image matches 'x*'; images are named a, b"


def test_masks_are_translated_before_training(tmp_path):
    message = refused(tmp_path, mask_in_colours)
    assert message.startswith(
        "--data folders, source masks: 1 problem in 1 sample:\n/masks/b.png: expected one channel"
    )
    assert message.endswith("or read the first channel with --read-masks first")


def test_images_are_translated_before_training(tmp_path):
    message = refused(tmp_path, nothing, channels=5)
    assert message == "--data folders: /images/a.png: expected 5 channels, got 3; --channels 3 keeps all"


def test_unreadable_images_end_a_trainer_with_one_line(tmp_path):
    from _common.settings import command_line
    from _data.checks import check_one_size

    pair(tmp_path)
    frames(tmp_path)
    data = Namespace(target=SegmentationFolder(tmp_path / "images"))
    with pytest.raises(SystemExit, match=r"^\S+/images/b.gif: holds 2 frames or pages; [^`\n]+$"):
        command_line(lambda: check_one_size(data, Namespace(main=True), "--per batch"))()


@pytest.mark.parametrize("reader", ["rare_class_order", "rare_source_classes"])
def test_broken_source_masks_end_a_trainer_with_one_line(tmp_path, reader):
    from _common.settings import command_line
    from _labelling.rare import rare_class_order, rare_source_classes

    pair(tmp_path)
    unknown_id(tmp_path)
    source = SegmentationFolder(tmp_path / "images", tmp_path / "masks", label_map=PLAIN)
    run = Namespace(main=True, world=1, out=tmp_path, settings=Namespace(data="gta5"))
    read_masks = {"rare_class_order": rare_class_order, "rare_source_classes": rare_source_classes}[reader]
    with pytest.raises(SystemExit, match=r"^\S+/masks/b.png: expected ids of LabelMap\(.*\), got 7 [^`\n]+$"):
        command_line(lambda: read_masks(Namespace(source=source, label_map=PLAIN), run, 0.5))()


def test_errors_in_the_code_keep_their_traceback():
    from _common.settings import command_line

    from selftrain_seg.mining import class_mix

    with pytest.raises(ValueError, match="`labels`: expected"):
        command_line(lambda: class_mix(torch.rand(2, 3, 4, 8), torch.zeros(2, 4, 9, dtype=torch.long)))()


def refused(root, change, **settings):
    """The message with which a trainer ends when it opens its data."""
    from _common.settings import Settings
    from _data.checks import look_at_masks
    from _data.opening import open_data

    pair(root)
    change(root)
    (root / "classes.json").write_text('["ground", "tree"]')
    for domain in ("source", "target", "val"):
        settings |= {f"{domain}_images": root / "images", f"{domain}_masks": root / "masks"}
    settings = Settings(data="folders", network="small-unet", classes=root / "classes.json", **settings)
    run = Namespace(
        settings=settings, main=True, world=1, rank=0, resumed=False, out=root / "out", say=lambda line: None
    )
    run.out.mkdir()
    with pytest.raises(SystemExit) as caught:
        look_at_masks(open_data(settings, run), run)
    return str(caught.value).replace(str(root), "")
