"""match_moments and swap_amplitudes against NumPy, and what breaks such functions."""

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch

from selftrain_seg.restyle import match_moments, swap_amplitudes
from tests.helpers import layouts, never_waits
from tests.oracles import restyle as oracle

STYLES = {
    "moments": (match_moments, oracle.moments),
    "amplitudes": (partial(swap_amplitudes, beta=0.2), partial(oracle.amplitudes, beta=0.2)),
    "amplitudes of the mean": (partial(swap_amplitudes, beta=0.0), partial(oracle.amplitudes, beta=0.0)),
    "amplitudes, many": (partial(swap_amplitudes, beta=0.49), partial(oracle.amplitudes, beta=0.49)),
}
BOTH = [match_moments, partial(swap_amplitudes, beta=0.2)]
both = pytest.mark.parametrize("function", BOTH, ids=["moments", "amplitudes"])


def batch(count=2, channels=3, height=10, width=12, seed=0):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def each(function, images, style):
    pairs = zip(images.double().numpy(), style.double().numpy(), strict=True)
    return torch.from_numpy(np.stack([function(image, other) for image, other in pairs]))


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("size", [(10, 12), (7, 9), (11, 10), (12, 7)])
@pytest.mark.parametrize("style_size", [(10, 12), (13, 9), (9, 16)])
def test_against_numpy(name, size, style_size):
    function, reference = STYLES[name]
    images, style = batch(2, 3, *size), 0.3 + 0.5 * batch(2, 3, *style_size, seed=1)
    expected = each(reference, images, style)
    torch.testing.assert_close(function(images.double(), style.double()), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(function(images, style).double(), expected, rtol=1e-5, atol=2e-6)


@both
@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels_and_any_range(function, channels):
    images, style = 200 * batch(3, channels) - 90, 30 * batch(3, channels, seed=1) - 20
    reference = STYLES["moments" if function is match_moments else "amplitudes"][1]
    torch.testing.assert_close(
        function(images.double(), style.double()), each(reference, images, style), rtol=1e-10, atol=1e-9
    )


def test_moments_are_those_of_the_style():
    restyled, style = match_moments(batch(), 0.2 * batch(seed=1, height=7)), 0.2 * batch(seed=1, height=7)
    for one, two in zip(torch.var_mean(restyled, (2, 3)), torch.var_mean(style, (2, 3)), strict=True):
        torch.testing.assert_close(one * (119 / 120 if one is not two else 1), one * 119 / 120)
    torch.testing.assert_close(restyled.mean((2, 3)), style.mean((2, 3)))
    torch.testing.assert_close(restyled.std((2, 3), correction=0), style.std((2, 3), correction=0))


def test_lab():
    images, style = batch().double(), 0.2 + 0.3 * batch(seed=1).double()
    restyled = match_moments(images, style, space="lab")
    # In Lab, the moments are the style's; inside sRGB's range, so that nothing is cut.
    mild = 0.4 + 0.2 * batch().double()
    inside = match_moments(mild, style, space="lab")
    assert 0 < inside.min() < inside.max() < 1
    expected = each(lambda image, other: oracle.moments(oracle.lab(image), oracle.lab(other)), mild, style)
    found = each(lambda image, _: oracle.lab(image), inside, style)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0.05)  # Lab counts to 100; its constants are rounded
    assert not torch.allclose(restyled, match_moments(images, style), atol=0.02)


@both
def test_an_image_in_its_own_style_is_itself(function):
    images = batch()
    torch.testing.assert_close(function(images, images), images, atol=1e-6, rtol=1e-6)


@both
def test_clip(function):
    images, style = 2 * batch() - 0.5, 2 * batch(seed=1) - 0.5
    free = function(images, style)
    assert free.min() < 0
    assert free.max() > 1
    assert torch.equal(function(images, style, clip=True), free.clamp(0, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@both
def test_half_precision_is_computed_in_float32(function, dtype):
    images, style = batch().to(dtype), batch(seed=1).to(dtype)
    found = function(images, style)
    assert found.dtype == dtype
    assert torch.equal(found, function(images.float(), style.float()).to(dtype))


@both
def test_autocast_changes_nothing(function):
    images, style = batch(), batch(seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = function(images, style)
    assert torch.equal(found, function(images, style))


@both
def test_dtypes_may_differ(function):
    assert function(batch(), batch(seed=1).bfloat16()).dtype == torch.float32
    assert function(batch().bfloat16(), batch(seed=1).double()).dtype == torch.bfloat16


@both
def test_layouts(function):
    images, style = batch(), batch(seed=1)
    expected = function(images, style)
    for name, one in layouts(images).items():
        for other in layouts(style).values():
            torch.testing.assert_close(function(one, other), expected, msg=name)


@both
def test_arguments_stay_as_they_are(function):
    images, style = batch(), batch(seed=1)
    images[0, 0, 0, 0] = torch.nan
    before = images.clone(), style.clone()
    function(images, style, clip=True)
    assert torch.equal(images.nan_to_num(), before[0].nan_to_num())
    assert torch.equal(style, before[1])


@both
def test_no_images(function):
    assert function(batch(0), batch(0, height=8)).shape == (0, 3, 10, 12)


def test_no_images_in_lab():
    assert match_moments(batch(0), batch(0), space="lab").shape == (0, 3, 10, 12)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, 1 / 3])
@both
def test_constant_images(function, value):
    style = batch(seed=1)
    restyled = function(torch.full_like(style, value), style)
    if function is match_moments:
        torch.testing.assert_close(restyled, style.mean((2, 3), keepdim=True).expand_as(style))
    else:
        assert restyled.isfinite().all()
    flat = function(batch(), torch.full((2, 3, 8, 8), value))
    assert flat.isfinite().all()
    torch.testing.assert_close(flat.mean((2, 3)), torch.full((2, 3), value))
    if function is match_moments:
        torch.testing.assert_close(flat, torch.full_like(flat, value))


def test_one_pixel():
    assert match_moments(batch(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.25)).item() == 0.25
    assert swap_amplitudes(batch(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.25)).item() == 0.25


@both
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite(function, bad):
    images, style = batch(), batch(seed=1)
    expected = function(images, style)
    images[0, 1, 2, 3] = bad
    found = function(images, style)
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0, [0, 2]], expected[0, [0, 2]])  # other channels of that image
    assert found[0, 1].isfinite().sum() == found[0, 1].numel() - 1
    assert found[0, 1, 2, 3].equal(images[0, 1, 2, 3]) or found[0, 1, 2, 3].isnan()
    if function is match_moments:
        torch.testing.assert_close(found.double(), each(oracle.moments, images, style), atol=1e-6, rtol=1e-6,
                                   equal_nan=True)  # fmt: skip
    # In the style, such a value does not count.
    images, spoilt = batch(), style.clone()
    spoilt[1, 0, 0, 0] = bad
    found = function(images, spoilt)
    assert found.isfinite().all()
    filled = spoilt.clone()
    filled[1, 0, 0, 0] = style[1, 0].flatten()[1:].mean()
    if function is match_moments:
        torch.testing.assert_close(found.double(), each(oracle.moments, images, spoilt), atol=1e-6, rtol=1e-6)
    else:
        torch.testing.assert_close(found, function(images, filled), atol=1e-6, rtol=1e-6)


@both
def test_a_style_without_a_value_gives_nan_there_only(function):
    style = batch(seed=1)
    style[0, 1] = torch.nan
    found = function(batch(), style)
    assert found[0, 1].isnan().all()
    assert found.isnan().sum() == found[0, 1].numel()


def test_amplitudes_keep_what_is_not_low():
    images, style = batch(), batch(seed=1)
    apart = torch.fft.fft2(swap_amplitudes(images, style, beta=0.2) - images)
    rows, columns = (torch.fft.fftfreq(n, 1 / n).abs() for n in (10, 12))
    low = (rows[:, None] <= 2) & (columns[None] <= 2)
    assert apart[..., ~low].abs().max() < 1e-4
    assert apart[..., low].abs().max() > 1


def test_a_negative_mean_keeps_its_sign():
    """Normalised images: an amplitude is never negative, and the phase of the mean is the image's."""
    restyled = swap_amplitudes(batch() - 2, batch(seed=1) + 4, beta=0.0)
    torch.testing.assert_close(restyled.mean((2, 3)), -(batch(seed=1) + 4).mean((2, 3)))


@pytest.mark.parametrize("function", [*BOTH, partial(match_moments, space="lab")], ids=["moments", "amplitudes", "lab"])
def test_compiles(function):
    images, style = batch(), batch(seed=1)
    compiled = torch.compile(lambda x, y: function(x, y), fullgraph=True)
    torch.testing.assert_close(compiled(images, style), function(images, style), atol=1e-5, rtol=1e-5)


@both
@pytest.mark.parametrize(
    ("images", "style", "error", "text"),
    [
        (batch().mul(255).byte(), batch(), TypeError, "`images`: expected a floating-point dtype, got torch.uint8; "
         "divide 8-bit images by 255"),
        (batch(), batch().mul(255).byte(), TypeError, "`style`: expected a floating-point dtype, got torch.uint8"),
        (batch()[0], batch(), ValueError, r"`images`: expected \(B, D, H, W\) with at least one pixel"),
        (batch(height=0), batch(), ValueError, r"`images`: expected \(B, D, H, W\) with at least one pixel"),
        (batch(), batch(width=0), ValueError, r"`style`: expected \(B, D, H, W\) with at least one pixel"),
        (batch(), batch(3), ValueError, "`style`: expected one image of 3 channels for each of the 2 `images`"),
        (batch(), batch(1), ValueError, "`style`: expected one image of 3 channels for each of the 2 `images`"),
        (batch(), batch(channels=1), ValueError, "`style`: expected one image of 3 channels"),
        (batch(), batch().to("meta"), ValueError, "`style`: expected device cpu, got meta"),
        (batch().numpy(), batch(), TypeError, "`images`: expected a torch.Tensor, got ndarray"),
    ],
)  # fmt: skip
def test_errors(function, images, style, error, text):
    with pytest.raises(error, match=text):
        function(images, style)


def test_errors_of_settings():
    with pytest.raises(ValueError, match="`space`: expected one of 'rgb', 'lab', got 'hsv'"):
        match_moments(batch(), batch(), space="hsv")
    with pytest.raises(ValueError, match="`space`: expected 'rgb' for images of 4 channels, got 'lab'"):
        match_moments(batch(channels=4), batch(channels=4), space="lab")
    with pytest.raises(ValueError, match=r"`beta`: expected a value in \[0.0, 0.5\], got 0.6"):
        swap_amplitudes(batch(), batch(), beta=0.6)
    with pytest.raises(ValueError, match=r"`beta`: expected a value below 0\.5, got 0\.5"):
        swap_amplitudes(batch(height=9, width=9), batch(), beta=0.5)
    with pytest.raises(ValueError, match="`style`: expected sides above 8 pixels, for the frequencies up to 4"):
        swap_amplitudes(batch(), batch(height=8), beta=0.4)
    with pytest.raises(TypeError, match="`beta`: expected a number, got str"):
        swap_amplitudes(batch(), batch(), beta="0.1")


@pytest.mark.gpu
@pytest.mark.parametrize("function", [*BOTH, partial(match_moments, space="lab")], ids=["moments", "amplitudes", "lab"])
def test_on_the_gpu(function):
    images, style = batch(3).cuda(), batch(3, height=14, seed=1).cuda()
    function(images, style)  # loads what the library of Fourier transforms needs
    with never_waits() if function in BOTH else nullcontext():  # kornia makes the matrices of Lab on the host
        found = function(images, style)
    torch.testing.assert_close(found.cpu(), function(images.cpu(), style.cpu()), atol=1e-5, rtol=1e-5)
