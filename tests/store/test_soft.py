"""Compact soft labels against fractions by hand."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch

from selftrain_seg.selectors import select_soft
from selftrain_seg.store import expand_soft
from selftrain_seg.store.soft import pack_soft
from tests.helpers import layouts, random_logits


def random_soft(batch=2, classes=7, height=11, width=9, seed=0):
    probs = random_logits(batch, classes, height, width, seed=seed).softmax(1)
    return torch.where(probs.amax(1, keepdim=True) > 0.4, probs, 0.0)


def by_fractions(values, k):
    """Largest k, scaled to 1, floors of 255ths, the rest to the largest remainders; None where a tie is too close."""
    order = sorted(range(len(values)), key=lambda c: (-values[c], c))[:k]
    kept = sum(values[c] for c in order)
    if kept == 0:
        return [0] * k, [0] * k
    scaled = [255 * values[c] / kept for c in order]
    floors = [int(s) for s in scaled]
    ranked = sorted(range(k), key=lambda i: (floors[i] - scaled[i], i))
    for i in ranked[: 255 - sum(floors)]:
        floors[i] += 1
    remainders = sorted(s - int(s) for s in scaled)
    near = [b - a for a, b in pairwise(remainders)] + [min(r, 1 - r) for r in remainders]
    if min(near) < Fraction(1, 1000):
        return None
    return [c if q else 0 for c, q in zip(order, floors, strict=True)], floors


@pytest.mark.parametrize("k", [1, 2, 3, 7, 9])
def test_fractions(k):
    soft = random_soft()
    planes = pack_soft(soft, k).planes
    size = min(k, 7)
    assert planes.shape == (2, 2 * size, 11, 9)
    compared = 0
    for image in range(2):
        for pixel in range(99):
            values = [Fraction(v) for v in soft[image].flatten(1)[:, pixel].tolist()]
            expected = by_fractions(values, size)
            if expected is not None:
                compared += 1
                assert planes[image].flatten(1)[:, pixel].tolist() == [*expected[0], *expected[1]]
    assert compared > (60 if k > 1 else 10)


def test_by_hand():
    # 0.5, 0.3, 0.2 | dropped 0: 127.5, 76.5, 51 -> floors 127, 76, 51 leave 1, which goes to the first of equals.
    soft = torch.tensor([0.3, 0.0, 0.5, 0.2], dtype=torch.float64).view(1, 4, 1, 1)
    packed = pack_soft(soft, 3)
    assert packed.planes.flatten().tolist() == [2, 0, 3, 128, 76, 51]
    assert packed.dropped.tolist() == [[0, 0]]
    # Of 0.5 and 0.3, with 0.2 dropped: 159.375, 95.625 -> 159, 96.
    packed = pack_soft(soft, 2)
    assert packed.planes.flatten().tolist() == [2, 0, 159, 96]
    assert packed.dropped.tolist() == [[200_000, 200_000]]
    assert pack_soft(soft, 1).planes.flatten().tolist() == [2, 255]
    # Class 0 with entry 0 must not erase class 0 with an entry.
    one = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert pack_soft(one, 3).planes.flatten().tolist() == [0, 0, 0, 255, 0, 0]
    assert expand_soft(pack_soft(one, 3).planes, 3).flatten().tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_worst_error_is_the_documented_one(k):
    soft = random_soft(4, 7, 40, 40, seed=1)
    packed = pack_soft(soft, k)
    back = expand_soft(packed.planes, 7)
    dropped = soft.sum(1, keepdim=True) - soft.topk(k, 1).values.sum(1, keepdim=True)
    error = (back - soft).abs()
    assert bool((error < dropped + 1 / 255 + 1e-6).all())
    assert bool((error > 0.9 / 255).any()) or k == 7  # and not a wider one
    selected = soft.sum(1) > 0
    assert not bool(back.sum(1)[~selected].any())
    torch.testing.assert_close(back.sum(1)[selected], torch.ones(int(selected.sum())), rtol=0, atol=2e-7)
    torch.testing.assert_close(packed.dropped[:, 1] / 1e6, dropped.flatten(1).amax(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(packed.dropped[:, 0] / 1e6, dropped.flatten(1).sum(1), rtol=1e-4, atol=1e-3)


def test_dtypes_layouts_and_batches():
    soft = random_soft()
    expected = pack_soft(soft, 3).planes
    for name, value in layouts(soft).items():
        assert torch.equal(pack_soft(value, 3).planes, expected), name
    assert torch.equal(pack_soft(soft.double(), 3).planes, expected)
    assert torch.equal(torch.cat([pack_soft(image, 3).planes for image in soft.split(1)]), expected)
    rough = soft.bfloat16()
    assert not pack_soft(rough, 3).wrong.any()
    assert bool(((expand_soft(pack_soft(rough, 7).planes, 7) - soft).abs() < 1 / 255 + 1 / 128).all())
    assert pack_soft(soft[:0], 3).planes.shape == (0, 6, 11, 9)


def test_soft_labels_of_the_selector():
    logits = random_logits(2, 19, 16, 24, seed=3)
    soft = select_soft(logits, torch.full((19,), 0.4)).soft
    packed = pack_soft(soft, 3)
    assert not packed.wrong.any()
    assert torch.equal(expand_soft(packed.planes, 19).sum(1) > 0, soft.sum(1) > 0)


def test_many_classes():
    soft = torch.zeros(1, 255, 1, 2)
    soft[0, 254, 0, 0] = 1.0
    soft[0, 200:205, 0, 1] = 0.2
    packed = pack_soft(soft, 2)
    assert packed.planes[0, :, 0, 0].tolist() == [254, 0, 255, 0]
    assert packed.planes[0, :, 0, 1].tolist() == [200, 201, 128, 127]
    assert expand_soft(packed.planes, 255)[0, 254, 0, 0] == 1.0


def test_wrong_values():
    soft = random_soft(6)
    soft[1, 0, 0, 0] = -0.001
    soft[2, 0, 0, 0] = torch.nan
    soft[3, :, 3, 3] = 0.1
    soft[4, 2, 5, 5] = torch.inf
    assert pack_soft(soft, 3).wrong.tolist() == [False, True, True, True, True, False]


def test_expand_soft_errors():
    good = torch.zeros(1, 6, 2, 2, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"`packed`: expected a torch.Tensor, got list"):
        expand_soft([1], 3)
    with pytest.raises(TypeError, match=r"`packed`: expected dtype torch.uint8, got torch.int64"):
        expand_soft(good.long(), 3)
    for shape in ((6, 2, 2), (1, 5, 2, 2), (1, 0, 2, 2)):
        with pytest.raises(ValueError, match="`packed`: expected"):
            expand_soft(torch.zeros(shape, dtype=torch.uint8), 3)
    with pytest.raises(TypeError, match="`num_classes`"):
        expand_soft(good, 3.0)
    with pytest.raises(ValueError, match="`num_classes`"):
        expand_soft(good, 0)


@pytest.mark.slow
def test_expand_soft_compiles():
    packed = pack_soft(random_soft(), 3).planes
    compiled = torch.compile(expand_soft, fullgraph=True)
    assert torch.equal(compiled(packed, 7), expand_soft(packed, 7))


@pytest.mark.gpu
def test_cuda_packs_the_same_bytes():
    soft = random_soft(4, 19, 64, 64)
    packed = pack_soft(soft.cuda(), 3)
    here = pack_soft(soft, 3)
    assert torch.equal(packed.planes.cpu(), here.planes)
    assert torch.equal(packed.dropped.cpu(), here.dropped)
    assert torch.equal(expand_soft(packed.planes, 19).cpu(), expand_soft(here.planes, 19))
