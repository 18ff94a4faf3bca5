"""The kernels for maps against the plain implementations: on a CUDA device, or in Triton's interpreter.

``test_interpreter.py`` runs this file with ``SELFTRAIN_SEG_KERNELS=1`` and ``TRITON_INTERPRET=1``. They search and
count, so what they find must be equal; but for probabilities, which are rounded.
"""

import os

import numpy as np
import pytest
import torch
from scipy import ndimage

from selftrain_seg.ops import class_draw, components, fitting, labels, sampling
from tests.helpers import layouts, random_logits

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def launched(monkeypatch):
    """How often a test has launched a kernel; a test without any would compare the plain path with itself."""
    pytest.importorskip("triton")
    from selftrain_seg.ops.triton import launch_maps

    names, real = [], launch_maps.launch_one
    monkeypatch.setattr(launch_maps, "launch_one", lambda *a, **k: names.append(a[0]) or real(*a, **k))
    yield names
    assert names


def winding(height, width):
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[::2] = True
    mask[1::4, -1] = True
    mask[3::4, 0] = True
    return mask


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 7, 9), (1, 1, 300), (1, 9, 1), (1, 5, 257), (1, 4, 128)])
@pytest.mark.parametrize("density", [0.45, 0.6, 1.0])
def test_components(shape, density):
    mask = torch.rand(shape, generator=generator()) < density
    found = components.connected_components(mask.to(DEVICE))
    assert found.dtype == torch.int64
    assert torch.equal(found.cpu(), components._on_cpu(mask))


@pytest.mark.parametrize(
    ("size", "turn"),
    [
        ((9, 140), lambda m: m),
        ((9, 140), lambda m: m.flip(0)),
        ((9, 30), lambda m: m.T),
        ((9, 30), lambda m: m.T.flip(0, 1)),
        ((9, 140), lambda m: ~m),
    ],
)
def test_long_components(size, turn):
    mask = turn(winding(*size))[None]
    found = components.connected_components(mask.to(DEVICE)).cpu().numpy()[0]
    numbers, count = ndimage.label(mask[0].numpy(), np.ones((3, 3)))
    for c in range(1, count + 1):
        here = numbers == c
        assert (found[here] == np.flatnonzero(here)[0]).all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
@pytest.mark.parametrize(("shape", "size"), [((3, 1, 1), (1, 1)), ((4, 9, 11), (4, 6)), ((2, 50, 130), (100, 3))])
def test_mine(dtype, shape, size):
    maps = torch.randint(0, 9, shape, generator=generator(1))
    maps[torch.rand(shape, generator=generator(2)) < 0.8] = 255 if dtype != torch.int64 else -7
    maps = maps.to(dtype)
    ranked = torch.stack([torch.randperm(6, generator=generator(b)) for b in range(shape[0])])
    ranked[:, 2] = -1
    ranked[:, 3] = 70000
    for limit in (0, 2**61, 2**62):
        for seed in range(2):
            draws = torch.randint(2**62, (shape[0], 4), generator=generator(seed))
            for columns in (6, 1, 0):
                given = maps, ranked[:, :columns], draws
                expected = labels._mine_anywhere(*given, None, *size, limit)
                found = labels.mine(*(tensor.to(DEVICE) for tensor in given), None, size, limit)
                assert torch.equal(found.cpu(), expected)
    counts = torch.stack([(maps == c).sum((1, 2)) for c in range(10)], 1)
    stored = labels.mine(maps.to(DEVICE), ranked.to(DEVICE), draws.to(DEVICE), counts.to(DEVICE), size, 2**62)
    assert torch.equal(stored.cpu(), labels._mine_anywhere(maps, ranked, draws, None, *size, 2**62))


def test_mine_in_strided_labels():
    maps = torch.randint(0, 5, (2, 14, 18), generator=generator())[:, ::2, 1::3]
    ranked, draws = torch.tensor([[1, 2], [2, 1]]), torch.randint(2**62, (2, 4), generator=generator())
    found = labels.mine(maps.to(DEVICE), ranked.to(DEVICE), draws.to(DEVICE), None, (2, 2), 2**62)
    assert torch.equal(found.cpu(), labels._mine_anywhere(maps, ranked, draws, None, 2, 2, 2**62))


@pytest.mark.parametrize(
    ("values", "dtype", "up"),
    [(64, torch.int64, False), (64, torch.uint8, True), (1024, torch.int64, True)],
)
def test_draw_classes(up, dtype, values):
    maps = torch.randint(0, 20, (5, 9, 260), generator=generator())
    maps[1] = 3
    maps[2] = 255
    maps[3, :, ::2] = 255
    if dtype == torch.int64:
        maps[4, :3], maps[4, 3:5], maps[4, 5] = -4, 5000, values - 1
    maps = maps.to(dtype)
    for seed in range(1 if values > 64 else 3):
        keys = torch.randint(2**62, (5, values), generator=generator(seed))
        for ignore_index in (255, 3):
            found = class_draw.draw_classes(maps.to(DEVICE), keys.to(DEVICE), ignore_index, up=up)
            assert found.dtype == torch.bool
            assert torch.equal(found.cpu(), class_draw._anywhere(maps, keys, ignore_index, up))


@pytest.mark.parametrize(("population", "count"), [(1000, 1), (1000, 20), (70, 20), (10**9, 100), (40, 32)])
def test_distinct(population, count):
    for seed in range(2):
        draws = torch.randint(2**62, (8 * count,), generator=generator(seed))
        found = sampling.distinct(draws.to(DEVICE), population, count).cpu()
        assert torch.equal(found, sampling._distinct_anywhere(draws, population, count))
        assert len(set(found.tolist())) == count


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_directions(layout, dtype):
    logits = random_logits(2, 5, 7, 9, scale=20.0).to(dtype)
    logits[0, 1, 2, 3], logits[1, 0, 0, 0], logits[1, 2, 3, 4] = torch.nan, torch.inf, -torch.inf
    chosen = torch.randperm(2 * 7 * 9, generator=generator())
    given = layouts(logits)[layout]
    if DEVICE == "cuda":
        given = given.cuda()
    found = sampling.directions(given, chosen.to(DEVICE)).cpu()
    assert found.dtype == torch.float64
    torch.testing.assert_close(
        found, sampling._directions_anywhere(logits, chosen), rtol=1e-5, atol=1e-9, equal_nan=True
    )
    assert found.isnan().any()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (12, 14), (5, 600)])
def test_fit(height, width):
    region = torch.zeros(12, height, width, dtype=torch.bool)
    for image in region[1:]:
        top, left = (int(torch.randint(side, (), generator=generator(image.storage_offset()))) for side in image.shape)
        image[top : top + 3, left : left + 50] = True
    factor = torch.rand(12, generator=generator(1), dtype=torch.float64) * 3 + 0.2
    factor[:3], factor[3:6], factor[6:9] = 1.5, 0.5, 0.9  # halves, or nearly so: 5 · 0.9
    chance = torch.rand(12, 2, generator=generator(2), dtype=torch.float64)
    given = region.any(2), region.any(1), factor, chance
    factor[9:] = torch.tensor([4.0, 100.0, 1e6])  # do not fit in, but for a single pixel
    found = torch.ops.selftrain_seg.fit(*(tensor.to(DEVICE) for tensor in given))
    for ours, expected in zip(found, fitting._anywhere(*given), strict=True):
        assert torch.equal(ours.cpu(), expected)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (12, 14), (5, 600)])
@pytest.mark.parametrize("regions", [1, 4])
def test_topmost(height, width, regions):
    numbers = torch.randint(0, regions + 1, (3, height, width), generator=generator(regions)).to(torch.uint8)
    numbers[1] = 0
    factor = torch.rand(3, regions, generator=generator(1), dtype=torch.float64) + 0.3
    chance = torch.rand(3, regions, 2, generator=generator(2), dtype=torch.float64)
    places = fitting.fit(numbers.to(DEVICE), factor.to(DEVICE), chance.to(DEVICE))
    top = fitting.topmost(numbers.to(DEVICE), places).cpu()
    assert torch.equal(top, fitting._topmost_anywhere(numbers, places.where.cpu(), places.inside.cpu()))
    assert height == 1 or len(top.unique()) > 1
