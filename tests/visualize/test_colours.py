"""Painted label maps, pixel by pixel, against Pillow's palettes and plain loops."""

import numpy as np
import pytest
import torch
from PIL import Image

from selftrain_seg.datasets import LabelMap, SyntheticStreets
from selftrain_seg.visualize import colorize, overlay

PALETTE = [(128, 64, 128), (244, 35, 232), (70, 70, 70)]


def by_pillow(labels, palette, ignore_index, ignore_color):
    """(H, W) of at most 256 values -> (H, W, 3), as any viewer of palette images does it."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    table[ignore_index] = ignore_color
    image = Image.fromarray(labels.numpy().astype(np.uint8), "L")
    image.putpalette(table.tobytes())
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("palette", [LabelMap.cityscapes().palette, SyntheticStreets.palette, LabelMap.voc().palette])
def test_colorize_is_what_viewers_show(dtype, palette):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(len(palette) + 2, (2, 5, 7), generator=generator)
    labels[labels >= len(palette)] = 255
    assert (labels == 255).any()
    painted = colorize(labels.to(dtype), palette, ignore_color=(1, 2, 3))
    assert painted.shape == (2, 3, 5, 7)
    assert painted.dtype == torch.uint8
    for one, expected in zip(painted, labels, strict=True):
        assert np.array_equal(one.permute(1, 2, 0), by_pillow(expected, palette, 255, (1, 2, 3)))


def test_256_classes_and_an_ignored_label_among_them():
    palette = [(i, 255 - i, (7 * i) % 256) for i in range(256)]
    labels = torch.arange(256).view(1, 16, 16)
    painted = colorize(labels, palette)
    assert painted.flatten(2)[0, :, :255].T.tolist() == [list(colour) for colour in palette[:255]]
    assert painted.flatten(2)[0, :, 255].tolist() == [0, 0, 0]  # ignored goes before the 256th colour
    assert colorize(labels, palette, ignore_index=-1).flatten(2)[0, :, 255].tolist() == [255, 0, 7 * 255 % 256]


@pytest.mark.parametrize("form", [tuple, np.array, torch.tensor, lambda p: torch.tensor(p, dtype=torch.uint8)])
def test_any_form_of_palette(form):
    labels = torch.tensor([[[2, 0], [1, -1]]], dtype=torch.int8)
    painted = colorize(labels, form(PALETTE), ignore_index=-1)
    expected = [[PALETTE[2], PALETTE[0]], [PALETTE[1], (0, 0, 0)]]
    assert painted[0].permute(1, 2, 0).tolist() == [[list(pixel) for pixel in row] for row in expected]


def test_no_images():
    labels = torch.zeros(0, 4, 6, dtype=torch.int64)
    assert colorize(labels, PALETTE).shape == (0, 3, 4, 6)
    assert overlay(torch.zeros(0, 3, 4, 6), labels, PALETTE).shape == (0, 3, 4, 6)


def by_hand(image, labels, palette, opacity, ignore_index):
    """Plain loops; image (3, H, W) of 0 to 255."""
    out = np.zeros(image.shape, np.int64)
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            red, green, blue = (float(value) for value in image[:, y, x])
            for channel in range(3):
                if labels[y, x] == ignore_index:
                    value = 0.299 * red + 0.587 * green + 0.114 * blue
                else:
                    value = (1 - opacity) * float(image[channel, y, x]) + opacity * palette[labels[y, x]][channel]
                out[channel, y, x] = round(value)
    return out


@pytest.mark.parametrize("opacity", [0, 0.3, 0.5, 1.0])
def test_overlay_against_loops(opacity):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (2, 3, 4, 5), generator=generator, dtype=torch.uint8)
    labels = torch.randint(4, (2, 4, 5), generator=generator)
    before = images.clone(), labels.clone()
    got = overlay(images, labels, PALETTE, opacity=opacity, ignore_index=3)
    assert got.dtype == torch.uint8
    for one, image, label in zip(got, images, labels, strict=True):
        difference = one.numpy().astype(int) - by_hand(image, label.numpy(), PALETTE, opacity, 3)
        assert np.abs(difference).max() <= 1  # halves may round either way
        assert (difference == 0).mean() > 0.9
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_floating_point_images(dtype):
    levels = torch.tensor([0.0, 0.25, 1.0, 1.01, -0.02, torch.nan]).to(dtype)
    images = levels.view(1, 1, 1, 6).expand(1, 3, 1, 6)
    labels = torch.zeros(1, 1, 6, dtype=torch.int64)
    got = overlay(images, labels, PALETTE, opacity=0.0)
    assert got[0, 0, 0].tolist() == [0, 64, 255, 255, 0, 0]


def test_strides_do_not_matter():
    images = torch.rand(2, 3, 4, 6)
    labels = torch.randint(3, (2, 6, 4)).transpose(1, 2)
    straight = overlay(images, labels.contiguous(), PALETTE)
    assert torch.equal(overlay(images.to(memory_format=torch.channels_last), labels, PALETTE), straight)


@pytest.mark.gpu
def test_on_the_gpu():
    images, labels = torch.rand(2, 3, 4, 6), torch.randint(3, (2, 4, 6))
    got = overlay(images.cuda(), labels.cuda(), PALETTE)
    assert got.is_cuda
    assert (got.cpu().int() - overlay(images, labels, PALETTE).int()).abs().max() <= 1


LABELS = torch.zeros(1, 2, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: colorize(LABELS + 3, PALETTE), ValueError, r"`labels`: expected values in \[0, 3\).* got 3"),
        (lambda: colorize(LABELS - 1, PALETTE), ValueError, r"`labels`: expected values in \[0, 3\).* got -1"),
        (lambda: colorize(LABELS.float(), PALETTE), TypeError, "`labels`: expected an integer dtype"),
        (lambda: colorize(LABELS.bool(), PALETTE), TypeError, "`labels`: expected an integer dtype"),
        (lambda: colorize(LABELS[0], PALETTE), ValueError, r"`labels`: expected \(B, H, W\), got \(2, 2\)"),
        (lambda: colorize([[0]], PALETTE), TypeError, "`labels`: expected a torch.Tensor"),
        (lambda: colorize(LABELS, []), ValueError, "`palette`: expected 1 to 256 colours"),
        (lambda: colorize(LABELS, [(0, 0, 0)] * 257), ValueError, "`palette`: expected 1 to 256 colours"),
        (lambda: colorize(LABELS, [(0, 0)]), ValueError, "`palette`: expected 1 to 256 colours of three values"),
        (lambda: colorize(LABELS, [(0, 0, 256)]), ValueError, r"`palette`: expected integers in \[0, 255\]"),
        (lambda: colorize(LABELS, [(0.1, 0.2, 0.3)]), ValueError, r"`palette`: expected integers in \[0, 255\]"),
        (lambda: colorize(LABELS, "viridis"), ValueError, "`palette`: expected"),
        (lambda: colorize(LABELS, PALETTE, ignore_color=(0, 0)), ValueError, "`ignore_color`: expected"),
        (lambda: overlay(torch.rand(1, 1, 2, 2), LABELS, PALETTE), ValueError, r"`images`: expected \(B, 3, H, W\)"),
        (lambda: overlay(torch.rand(2, 3, 2, 2), LABELS, PALETTE), ValueError, r"`labels`: expected \(B, H, W\) ="),
        (lambda: overlay(torch.zeros(1, 3, 2, 2).long(), LABELS, PALETTE), TypeError, "`images`: expected uint8"),
        (lambda: overlay(torch.randn(1, 3, 2, 2) * 9, LABELS, PALETTE), ValueError, "not normalised"),
        (lambda: overlay(torch.rand(1, 3, 2, 2), LABELS, PALETTE, opacity=1.1), ValueError, "`opacity`"),
        (lambda: overlay(torch.rand(1, 3, 2, 2), LABELS + 9, PALETTE), ValueError, r"expected values in \[0, 3\)"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
