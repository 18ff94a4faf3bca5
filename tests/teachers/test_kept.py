import numpy as np
import pytest
import torch

from selftrain_seg.teachers._kept import moved, pack, unpack


def levels_by_loops(channel):
    """What is left of a channel of 256 levels between its least and its greatest value, in double precision."""
    low, high = min(map(float, channel.ravel())), max(map(float, channel.ravel()))
    out = np.zeros(channel.shape)
    for place, value in np.ndenumerate(channel):
        level = round(255 * (float(value) - low) / (high - low)) if high > low else 0
        out[place] = low + level * (high - low) / 255
    return out


@pytest.mark.parametrize("scale", [1.0, 255.0, -3.0, 65535.0, 1e-6])
def test_levels_by_loops(scale):
    images = scale * (torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)) - 0.4)
    back = unpack(pack(images, True))
    for image, found in zip(images.numpy(), back.numpy(), strict=True):
        for channel, ours in zip(image, found, strict=True):
            step = (channel.max() - channel.min()) / 255
            # A value in the middle of two levels may fall to either.
            np.testing.assert_allclose(ours, levels_by_loops(channel), rtol=0, atol=1.001 * step)
            assert np.abs(ours - channel).max() <= 0.5001 * step
            assert (ours.min(), ours.max()) == pytest.approx((channel.min(), channel.max()))


def test_bytes_of_full_range_come_back():
    codes = torch.arange(256).repeat(3).view(1, 3, 16, 16)
    mean, deviation = torch.rand(2, 3, 1, 1).unbind()
    for images in (codes / 255, (codes / 255 - mean) / (deviation + 0.1)):
        torch.testing.assert_close(unpack(pack(images, True)), images)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes(dtype):
    images = torch.rand(2, 3, 8, 9).to(dtype)
    kept = pack(images, True)
    back = unpack(kept)
    assert (kept.values.dtype, back.dtype, back.shape) == (torch.uint8, dtype, images.shape)
    torch.testing.assert_close(back.double(), images.double(), rtol=0, atol=0.5 / 255 + torch.finfo(dtype).eps)


def test_what_has_no_levels():
    flat = torch.full((1, 2, 3, 3), 0.3)
    assert torch.equal(unpack(pack(flat, True)), flat)
    broken = torch.rand(1, 2, 3, 3)
    broken[0, 1, 0, 0] = float("nan")
    back = unpack(pack(broken, True))
    assert back[0, 1].isnan().all()  # as the network would have seen none of it
    assert not back[0, 0].isnan().any()
    for images in (torch.randint(0, 256, (2, 3, 4, 4)).byte(), torch.rand(0, 3, 4, 4), torch.rand(2, 3, 0, 4)):
        for back in (unpack(pack(images, True)), unpack(pack(images, False))):
            assert torch.equal(back, images)
            assert back.dtype == images.dtype


def test_any_layout_and_no_change():
    images = torch.rand(2, 3, 8, 9)
    expected = unpack(pack(images, True))
    strange = images.to(memory_format=torch.channels_last)
    before = strange.clone()
    assert torch.equal(unpack(pack(strange, True)), expected)
    assert torch.equal(unpack(pack(images.mT.contiguous().mT, True)), expected)
    assert torch.equal(strange, before)
    assert moved(pack(images, True), torch.device("meta")).values.device.type == "meta"
    assert moved(pack(images, False), torch.device("meta")).values.device.type == "meta"
