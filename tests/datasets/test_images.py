"""Images of every kind that people bring, as numbers: nothing clipped, dropped or turned without a word."""

from __future__ import annotations

import io
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from selftrain_seg.datasets import BrokenFilesError, SegmentationFolder
from tests.datasets import files, trees

RNG = np.random.default_rng(0)
GREY8 = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
GREY16[0, :2] = 0, 65535
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
RGBA = RNG.integers(0, 256, (5, 7, 4), dtype=np.uint8)
RGB16 = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)


def opened(root, data, name="a.png", **options):
    (root / name).write_bytes(data)
    return SegmentationFolder(root, **options)


def read(root, data, name="a.png", **options):
    image, found = opened(root, data, name, **options)[0]
    assert type(image) is tv_tensors.Image
    assert found == "a"
    return image


def same(image, pixels):
    """An image equals (H, W, C) pixels."""
    assert image.is_contiguous()
    assert np.array_equal(np.asarray(image), np.moveaxis(np.asarray(pixels), -1, 0))


class TestBits:
    @pytest.mark.parametrize(
        ("name", "data"),
        [
            ("a.png", files.png(GREY16, 16)),
            ("a.tif", files.encoded(GREY16, "TIFF")),
            ("a.TIFF", files.tiff(GREY16)),
            ("a.tif", files.tiff(GREY16, big=True)),
        ],
        ids=["png", "pillow", "little", "big"],
    )
    def test_grey_of_16_bits_keeps_its_range(self, tmp_path, name, data):
        image = read(tmp_path, data, name, channels=1)
        assert image.dtype == torch.float32
        same(image, (GREY16 / np.float32(65535))[..., None])
        assert (image.min(), image.max()) == (0, 1)
        assert len(image.unique()) > 30  # Pillow's own conversion makes them white
        same(read(tmp_path, data, name), np.stack([GREY16 / np.float32(65535)] * 3, -1))

    def test_white(self, tmp_path):
        pixels = (GREY16 >> 4).astype(np.uint16)
        image = read(tmp_path, files.png(pixels, 16), white=4095, channels=1)
        same(image, (pixels / np.float32(4095))[..., None])
        with pytest.raises(ValueError, match=r"a.png: expected values from 0 to `white` 4095, got 0 to 65535"):
            read(tmp_path, files.png(GREY16, 16), white=4095)
        same(read(tmp_path, files.encoded(RGB, "PNG"), white=4095), RGB)  # 8 bits have no other white

    def test_colours_of_16_bits(self, tmp_path):
        image = read(tmp_path, trees.png16(RGB16))
        assert image.dtype == torch.float32
        same(image, RGB16 / np.float32(65535))

    def test_floating_point_is_left_as_it_is(self, tmp_path):
        pixels = RNG.normal(0, 3, (5, 7)).astype(np.float32)
        image = read(tmp_path, files.encoded(pixels, "TIFF"), "a.tif", channels=1)
        assert image.dtype == torch.float32
        same(image, pixels[..., None])
        pixels[1, 1:3] = np.nan, np.inf
        dataset = opened(tmp_path, files.encoded(pixels, "TIFF"), "a.tif")
        with pytest.raises(BrokenFilesError, match=r"a.tif: 6 values are NaN or infinite"):
            dataset.verify()

    def test_integers_without_a_white(self, tmp_path):
        data = files.encoded(GREY16.astype(np.int32), "TIFF")
        with pytest.raises(ValueError, match=r"a.tif: int32 has no standard value of white: .*`white=`, the"):
            read(tmp_path, data, "a.tif")
        same(read(tmp_path, data, "a.tif", white=65535, channels=1), (GREY16 / np.float32(65535))[..., None])
        data = files.encoded(-1 - GREY16.astype(np.int32), "TIFF")
        with pytest.raises(ValueError, match=r"a.tif: expected values from 0 to `white` 65535, got -65536 to -1"):
            read(tmp_path, data, "a.tif", white=65535)

    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_few_bits_are_stretched_from_black_to_white(self, tmp_path, bits):
        pixels = RNG.integers(0, 2**bits, (5, 7))
        image = read(tmp_path, files.png(pixels, bits), channels=1)
        assert image.dtype == torch.uint8
        same(image, (pixels * (255 // (2**bits - 1)))[..., None])

    def test_one_range_after_to_dtype(self, tmp_path):
        """What the documentation says to do brings all of them to [0, 1]."""
        scale = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)
        (tmp_path / "b.png").write_bytes(files.png(GREY16, 16))
        (tmp_path / "a.png").write_bytes(files.encoded(RGB, "PNG"))
        a, b = (image for image, _ in SegmentationFolder(tmp_path, transforms=scale))
        assert a.dtype == b.dtype == torch.float32
        assert torch.allclose(a, torch.from_numpy(RGB / np.float32(255)).permute(2, 0, 1))
        assert b.max() == 1


LUMA = (RGB.astype(np.float64) @ (0.299, 0.587, 0.114))[..., None]


class TestChannels:
    @pytest.mark.parametrize(
        ("data", "channels", "expected"),
        [
            (files.encoded(GREY8, "PNG"), 3, np.stack([GREY8] * 3, -1)),
            (files.encoded(GREY8, "PNG"), 1, GREY8[..., None]),
            (files.encoded(GREY8, "PNG"), None, GREY8[..., None]),
            (files.encoded(RGB, "PNG"), 3, RGB),
            (files.encoded(RGB, "PNG"), None, RGB),
            (files.encoded(RGB, "PNG"), (2, 0), RGB[..., [2, 0]]),
            (files.encoded(RGBA, "PNG"), 3, RGBA[..., :3]),
            (files.encoded(RGBA, "PNG"), 4, RGBA),
            (files.encoded(RGBA, "PNG"), None, RGBA),
            (files.encoded(RGBA, "PNG"), (3, 0, 1), RGBA[..., [3, 0, 1]]),
            (files.encoded(RGBA, "TIFF"), 4, RGBA),
            (files.encoded(RGBA[..., :2], "PNG"), 3, RGBA[..., [0, 0, 0]]),
            (files.encoded(RGBA[..., :2], "PNG"), 1, RGBA[..., :1]),
            (files.encoded(RGBA[..., :2], "PNG"), 2, RGBA[..., :2]),
            (trees.png16(np.dstack((RGB16, GREY16))), 3, RGB16 / np.float32(65535)),
        ],
    )
    def test_choice(self, tmp_path, data, channels, expected):
        same(read(tmp_path, data, channels=channels), expected)

    def test_grey_of_colours(self, tmp_path):
        image = np.asarray(read(tmp_path, files.encoded(RGB, "PNG"), channels=1))
        assert image.dtype == np.uint8
        assert np.abs(image[0] - LUMA[..., 0]).max() <= 0.51

    def test_colours_of_other_kinds(self, tmp_path):
        palette = Image.fromarray(GREY8 % 4)
        palette.putpalette(bytes(range(12)))
        same(read(tmp_path, files.encoded(palette, "PNG")), np.arange(12).reshape(4, 3)[GREY8 % 4])
        clear = files.encoded(palette, "PNG", transparency=1)
        same(read(tmp_path, clear), np.arange(12).reshape(4, 3)[GREY8 % 4])
        assert read(tmp_path, clear, channels=None).shape[0] == 4
        print_ = Image.fromarray(np.full((5, 7, 3), 200, np.uint8)).convert("CMYK")
        for channels in (3, None):
            image = read(tmp_path, files.encoded(print_, "TIFF"), "a.png", channels=channels)
            assert (image - 200).abs().max() <= 1

    @pytest.mark.parametrize(
        ("data", "channels", "message"),
        [
            (files.encoded(RGB, "PNG"), 4, "expected 4 channels, got 3; `channels=None` keeps all"),
            (files.encoded(RGBA, "PNG"), 5, "expected 5 channels, got 4, including opacity"),
            (files.encoded(GREY8, "PNG"), (0, 1), r"expected channels \(0, 1\), numbered from 0, got 1 channels"),
            (files.encoded(Image.new("LAB", (2, 2)), "TIFF"), 3, r"holds L\*a\*b\* colours; convert it to RGB"),
        ],
    )
    def test_refused(self, tmp_path, data, channels, message):
        with pytest.raises(ValueError, match=f"a.png: {message}"):
            read(tmp_path, data, channels=channels)

    @pytest.mark.parametrize(
        ("channels", "error", "message"),
        [
            (0, ValueError, "`channels`: expected at least 1, got 0"),
            ("RGB", TypeError, "`channels`: expected an int, got str"),
            ((), ValueError, "`channels`: expected at least one, got none"),
            ((0, -1), ValueError, r"`channels\[1\]`: expected at least 0, got -1"),
        ],
    )
    def test_argument(self, tmp_path, channels, error, message):
        with pytest.raises(error, match=message):
            opened(tmp_path, files.encoded(RGB, "PNG"), channels=channels)


MANY = RNG.integers(0, 200, (5, 7, 5), dtype=np.uint8)
TIFFS = {
    "5 channels": files.tiff(MANY),
    "RGB and another": files.tiff(MANY[..., :4]),
    "2 channels": files.tiff(MANY[..., :2]),
    "RGB of 16 bits": files.tiff(RGB16),
    "8 channels of 16 bits": files.tiff(np.concatenate((RGB16, RGB16, RGB16[..., :2]), 2)),
}


def pillow_reads_all_four(data):
    """As old versions do."""
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image).shape[2] == 4


class TestTIFF:
    """Pillow leaves out the channels and bits it does not know of; here tifffile reads such files, or nothing does."""

    @pytest.mark.parametrize("kind", TIFFS)
    def test_without_tifffile(self, tmp_path, monkeypatch, kind):
        monkeypatch.setitem(sys.modules, "tifffile", None)
        if kind == "RGB and another" and pillow_reads_all_four(TIFFS[kind]):
            same(read(tmp_path, TIFFS[kind], "a.tif", channels=4), MANY[..., :4])
            return
        with pytest.raises(
            ValueError, match=r"a.tif: a TIFF with more channels or bits than Pillow reads; install tif"
        ):
            read(tmp_path, TIFFS[kind], "a.tif", channels=None)

    def test_with_tifffile(self, tmp_path):
        pytest.importorskip("tifffile")
        same(read(tmp_path, TIFFS["5 channels"], "a.tif", channels=5), MANY)
        same(read(tmp_path, TIFFS["5 channels"], "a.tif", channels=(4, 2, 0)), MANY[..., [4, 2, 0]])
        same(read(tmp_path, TIFFS["RGB and another"], "a.tif", channels=4), MANY[..., :4])
        with pytest.raises(ValueError, match=r"a.tif: expected 3 channels, got 4; "):  # not an opacity: not left out
            read(tmp_path, TIFFS["RGB and another"], "a.tif")
        same(read(tmp_path, files.tiff(MANY[..., :4], extra=2), "a.tif"), MANY[..., :3])
        same(read(tmp_path, TIFFS["2 channels"], "a.tif", channels=2), MANY[..., :2])
        same(read(tmp_path, TIFFS["RGB of 16 bits"], "a.tif"), RGB16 / np.float32(65535))

    def test_planes_and_truncation(self, tmp_path):
        tifffile = pytest.importorskip("tifffile")
        planes = np.moveaxis(MANY, -1, 0)
        tifffile.imwrite(tmp_path / "a.tif", planes, photometric="minisblack", planarconfig="separate")
        data = (tmp_path / "a.tif").read_bytes()
        same(read(tmp_path, data, "a.tif", channels=5), MANY)
        for length in range(0, len(data), 40):
            with pytest.raises(ValueError, match=r"a.tif: "):
                read(tmp_path, data[:length], "a.tif", channels=5)

    def test_pages_of_many_channels(self, tmp_path):
        tifffile = pytest.importorskip("tifffile")
        for _ in range(2):
            tifffile.imwrite(tmp_path / "a.tif", MANY, photometric="minisblack", planarconfig="contig", append=True)
        with pytest.raises(ValueError, match=r"a.tif: holds 2 (frames or )?pages; expected one image"):
            read(tmp_path, (tmp_path / "a.tif").read_bytes(), "a.tif", channels=5)


def exif(orientation):
    out = Image.Exif()
    out[0x0112] = orientation
    return out


# What the standard (EXIF 2.32, 4.6.4) says of row 0 and column 0: 6 has the top on the right, say.
UPRIGHT = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: pixels[::-1, ::-1],
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
    def test_upright(self, tmp_path, kind, orientation):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = files.encoded(RGB, kind, exif=exif(orientation), **options)
        with Image.open(io.BytesIO(files.encoded(RGB, kind, **options))) as plain:
            expected = UPRIGHT[orientation](np.array(plain))
        dataset = opened(tmp_path, data, "a.png")
        same(dataset[0][0], expected)
        assert dataset[0][0].shape[1:] == ((5, 7) if orientation < 5 else (7, 5))

    @pytest.mark.parametrize("orientation", [3, 6])
    def test_16_bits(self, tmp_path, orientation):
        data = files.encoded(GREY16, "PNG", exif=exif(orientation))
        expected = {3: GREY16[::-1, ::-1], 6: np.rot90(GREY16, -1)}[orientation]
        same(read(tmp_path, data, channels=1), (expected / np.float32(65535))[..., None])

    def test_damaged_exif_turns_nothing(self, tmp_path):
        data = files.encoded(RGB, "PNG", exif=b"Exif\0\0nonsense")
        same(read(tmp_path, data), RGB)


class TestFrames:
    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
    def test_several_are_refused(self, tmp_path, kind):
        frames = [Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy()), Image.fromarray(RGB[:, ::-1].copy())]
        data = files.encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        message = "a.png: holds 3 frames or pages; expected one image: save the one you want as a separate file"
        with pytest.raises(ValueError, match=message):
            read(tmp_path, data)

    def test_previews_are_no_images(self, tmp_path):
        """Cameras put a second, small JPEG behind the first."""
        small = Image.fromarray(RGB[::2, ::2].copy())
        whole = np.full((8, 8, 3), (9, 99, 199), np.uint8)
        data = files.encoded(Image.fromarray(whole), "MPO", save_all=True, append_images=[small])
        assert (read(tmp_path, data, "a.JPG") - torch.tensor([9, 99, 199])[:, None, None]).abs().max() <= 3

    def test_pyramids(self, tmp_path):
        """Smaller copies of a page, marked as such, are none of their own."""
        tifffile = pytest.importorskip("tifffile")
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            file.write(RGB, photometric="rgb")
            file.write(RGB[::2, ::2], photometric="rgb", subfiletype=1)
        same(SegmentationFolder(tmp_path)[0][0], RGB)


class TestLimit:
    @pytest.mark.parametrize("mode", ["error", "warning"])
    def test_large_images_are_not_broken(self, tmp_path, monkeypatch, mode):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15 if mode == "error" else 30)  # 35 pixels: over twice, or once
        message = r"a.png: larger than Pillow's limit against decompression bombs .*PIL.Image.MAX_IMAGE_PIXELS = None"
        for data in (files.encoded(RGB, "PNG"), trees.png16(RGB16), files.encoded(RGB, "JPEG")):
            dataset = opened(tmp_path, data)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(ValueError, match=message):
                    dataset[0]
                with pytest.raises(BrokenFilesError, match=message):
                    dataset.verify()
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert len(dataset[0]) == 2

    def test_tifffile(self, tmp_path, monkeypatch):
        pytest.importorskip("tifffile")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)
        with pytest.raises(ValueError, match=r"a.tif: larger than Pillow's limit"):
            read(tmp_path, files.tiff(np.concatenate((RGB16, RGB16), 2)), "a.tif", channels=6)


DAMAGED = {
    "png": files.encoded(RGB, "PNG"),
    "png of 16 bits": trees.png16(RGB16),
    "jpeg": files.encoded(RGB, "JPEG", exif=exif(6)),
    "tiff": files.encoded(RGB, "TIFF"),
    "packed tiff": files.encoded(RGB, "TIFF", compression="tiff_lzw"),
    "tiff of 16 bits": files.tiff(GREY16),
    "bmp": files.encoded(RGB, "BMP"),
    "webp": files.encoded(RGB, "WEBP", lossless=True),
    "tiff of 5 channels": files.tiff(MANY),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files(tmp_path, kind):
    """Whatever is cut off or changed, an error names the file, or there is an image; nothing else."""
    if kind == "tiff of 5 channels":
        pytest.importorskip("tifffile")
    data = DAMAGED[kind]
    dataset = opened(tmp_path, data, channels=None)
    damaged = [data[:length] for length in range(0, len(data), max(1, len(data) // 60))]
    for place in range(0, len(data), max(1, len(data) // 120)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        damaged.append(bytes(changed))
    failures = 0
    for content in damaged:
        (tmp_path / "a.png").write_bytes(content)
        try:
            image, _ = dataset[0]
            assert image.ndim == 3
        except ValueError as error:
            assert str(error).startswith(f"{tmp_path / 'a.png'}: ")  # noqa: PT017
            failures += 1
    assert failures > len(damaged) // 6
