import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from selftrain_seg.teachers import MeanTeacher, predict_in_parts
from tests.oracles.teachers import windows_by_loops
from tests.teachers.nets import Net, images, snapshot


def pointwise():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Conv2d(3, 2, 1)


def places(images):
    """Logits that tell where in its window a pixel is, and which image it comes from."""
    height, width = images.shape[-2:]
    rows, columns = torch.arange(height).float(), torch.arange(width).float()
    return torch.stack([images[:, 0] * 100, (rows[:, None] + 17 * columns).expand(len(images), -1, -1)], dim=1)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_windows_by_loops(data):
    sides = st.integers(1, 11)
    batch, height, width, h, w = (data.draw(sides, name) for name in ("batch", "height", "width", "h", "w"))
    stride = (data.draw(st.integers(1, h)), data.draw(st.integers(1, w))) if data.draw(st.booleans()) else None
    at_once, taper = data.draw(st.none() | sides), data.draw(st.booleans())
    x = images(batch=batch, size=(height, width))
    out = predict_in_parts(places, x, images_at_once=at_once, window=(h, w), stride=stride, taper=taper)
    down, right = stride or (h, w)
    total, times = np.zeros((batch, 2, height, width)), np.zeros((height, width))
    for top, bottom in windows_by_loops(height, h, down):
        for left, end in windows_by_loops(width, w, right):
            for i in range(top, bottom):
                for j in range(left, end):
                    above, beside = min(i - top, bottom - 1 - i), min(j - left, end - 1 - j)
                    weight = (1 + min(above, h - down)) * (1 + min(beside, w - right)) if taper else 1
                    times[i, j] += weight
                    total[:, 0, i, j] += weight * 100 * x[:, 0, i, j].numpy()
                    total[:, 1, i, j] += weight * ((i - top) + 17 * (j - left))
    assert times.min() >= 1
    np.testing.assert_allclose(out.numpy(), total / times, rtol=1e-5)


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (1, 1), (5, 13)])
@pytest.mark.parametrize("window", [None, (4, 4), (3, 5), (20, 20), (1, 1)])
@pytest.mark.parametrize("at_once", [None, 1, 2, 3, 8])
def test_equal_to_direct_prediction(size, window, at_once):
    model, x = pointwise(), images(batch=5, size=size)
    out = predict_in_parts(model, x, images_at_once=at_once, window=window)
    torch.testing.assert_close(out, model(x).detach(), rtol=1e-6, atol=1e-6)
    assert not out.requires_grad


def test_chunks_change_nothing():
    model = MeanTeacher(Net())
    for at_once in (1, 2, 4):
        torch.testing.assert_close(
            predict_in_parts(model, images(batch=5), images_at_once=at_once), model(images(batch=5))
        )


def test_sizes_of_the_calls():
    seen = []

    def model(x):
        seen.append(tuple(x.shape))
        return x

    predict_in_parts(model, images(batch=5, size=(4, 6)), images_at_once=2)
    assert seen == [(2, 3, 4, 6), (2, 3, 4, 6), (1, 3, 4, 6)]
    seen.clear()
    predict_in_parts(model, images(batch=3, size=(4, 7)), images_at_once=2, window=(9, 3))
    assert seen == [(2, 3, 4, 3)] * 3 + [(1, 3, 4, 3)] * 3
    seen.clear()
    predict_in_parts(model, images(batch=1, size=(4, 8)), window=(4, 4), stride=(4, 2))
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("dtype", "whole", "windows"),
    [
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float32, torch.float32),
        (torch.float64, torch.float64, torch.float64),
    ],
)
def test_dtypes(dtype, whole, windows):
    model, x = pointwise().to(dtype), images().to(dtype)
    assert predict_in_parts(model, x).dtype == whole
    out = predict_in_parts(model, x, window=(4, 4), stride=(1, 1))
    assert out.dtype == windows
    torch.testing.assert_close(out, model(x).to(windows), rtol=1e-2, atol=1e-2)
    if dtype == torch.float64:
        torch.testing.assert_close(out, model(x), rtol=1e-14, atol=1e-15)


def test_outputs_of_all_kinds_and_other_resolutions():
    model = pointwise()
    for wrap in (lambda z: {"out": z}, lambda z: (z.mean(), z)):
        out = predict_in_parts(lambda x, wrap=wrap: wrap(model(x)), images(), window=(4, 4))
        torch.testing.assert_close(out, model(images()).detach())
    x = images(batch=3)
    coarse = predict_in_parts(lambda x: model(x)[..., ::2, ::2], x, images_at_once=2)
    torch.testing.assert_close(coarse, F.interpolate(model(x)[..., ::2, ::2].detach(), (6, 8), mode="bilinear"))
    windows = predict_in_parts(lambda x: model(x)[..., ::2, ::2], x, window=(3, 8))
    expected = [F.interpolate(model(part)[..., ::2, ::2].detach(), (3, 8), mode="bilinear") for part in x.split(3, 2)]
    torch.testing.assert_close(windows, torch.cat(expected, dim=2))
    one = predict_in_parts(lambda x: model(x)[:, :1], x, window=(4, 4))  # of a sigmoid: logits, too
    torch.testing.assert_close(one, model(x)[:, :1].detach())


def test_nothing_is_changed():
    model, x = Net().eval(), images(batch=3).requires_grad_()
    before, pixels = snapshot(model), x.detach().clone()
    predict_in_parts(model, x, images_at_once=2, window=(4, 4))
    assert torch.equal(x.detach(), pixels)
    assert x.grad is None
    assert all(torch.equal(value, before[name]) for name, value in snapshot(model).items())


@pytest.mark.parametrize(
    ("x", "keywords", "error", "message"),
    [
        (None, {}, TypeError, "`images`: expected a torch.Tensor, got NoneType"),
        (images().long(), {}, TypeError, "`images`: expected a floating-point dtype"),
        (images()[0], {}, ValueError, r"`images`: expected \(B, C, H, W\), got \(3, 6, 8\)"),
        (images()[:0], {}, ValueError, r"`images`: expected at least one, got \(0, 3, 6, 8\)"),
        (images(), {"images_at_once": 0}, ValueError, "`images_at_once`: expected at least 1, got 0"),
        (images(), {"images_at_once": 1.0}, TypeError, "`images_at_once`: expected an int, got float"),
        (images(), {"window": (0, 4)}, ValueError, r"`window\[0\]`: expected at least 1, got 0"),
        (images(), {"window": (4, 4.0)}, TypeError, r"`window\[1\]`: expected an int, got float"),
        (images(), {"window": 4}, ValueError, r"`window`: expected \(height, width\), got 4"),
        (images(), {"window": (4, 4), "stride": (0, 1)}, ValueError, r"`stride\[0\]`: expected at least 1"),
        (images(), {"window": (4, 4), "stride": (5, 1)}, ValueError, r"`stride`: expected at most `window` = \(4, 4\)"),
        (images(), {"window": (4, 4), "stride": (1, 5)}, ValueError, r"`stride`: expected at most `window` = \(4, 4\)"),
        (images(), {"stride": (1, 1)}, ValueError, "`stride`: expected None without `window`"),
        (images(), {"taper": True}, ValueError, "`taper`: expected False without `window`"),
    ],
)
def test_raises(x, keywords, error, message):
    with pytest.raises(error, match=message):
        predict_in_parts(pointwise(), x, **keywords)


@pytest.mark.parametrize("window", [None, (4, 4)])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: x[:1], r"`model\(images\)`: expected a batch of 2, got \(1, 3, "),
        (lambda x: x[0], r"`model\(images\)`: expected \(B, C, H, W\), got \(3, "),
        (lambda x: [x, x], r"`model\(images\)`: expected one tensor \(B, C, h, w\), got a list with 2 "),
    ],
)
def test_outputs_that_do_not_fit(model, message, window):
    with pytest.raises(ValueError, match=message):
        predict_in_parts(model, images(), window=window)


@pytest.mark.parametrize("window", [None, (4, 4)])
def test_no_logits(window):
    with pytest.raises(TypeError, match=r"`model\(images\)`: expected logits"):
        predict_in_parts(lambda x: None, images(), window=window)
