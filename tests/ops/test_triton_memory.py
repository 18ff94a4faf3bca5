"""Kernels touch no memory but their own: inputs lie among NaN, outputs among sentinels; and they write all of it.

In the interpreter every address is looked at, too: a read from outside need not show in a result.
"""

import numpy as np
import pytest
import torch

from selftrain_seg.ops import loss
from tests.helpers import random_logits
from tests.losses.cases import make_labels, make_soft
from tests.ops.test_triton import DEVICE, INTERPRETED, pytestmark  # noqa: F401

launch = pytest.importorskip("selftrain_seg.ops.triton.launch")
launch_loss = pytest.importorskip("selftrain_seg.ops.triton.launch_loss")
_plan = pytest.importorskip("selftrain_seg.ops.triton._plan")

FACTORS = torch.tensor([1.0, 0.5, 0.5], dtype=torch.float64)  # on the host, read there
SETTINGS = (("square", [True, True, True], "labelled"), ("kld", [True, True, False], "none"))
MARGIN = 1 << 13  # elements before and after, more than a tile has
SENTINEL = 77


class Guarded:
    """Stands in for torch in the launchers: what it allocates lies among sentinels, and is full of them."""

    def __init__(self):
        self.allocated = []
        self.ranges = []  # of addresses that kernels may touch

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, shape, *, dtype, device):
        return self.empty_like(torch.empty(shape, dtype=dtype, device=device))

    def empty_like(self, like, dtype=None):
        like = torch.empty_like(like, dtype=dtype)
        plain_dtype = torch.uint8 if like.dtype == torch.bool else like.dtype  # a bool that is 77 cannot be looked at
        memory = torch.full((like.numel() + 2 * MARGIN,), SENTINEL, dtype=plain_dtype, device=like.device)
        self.allocated.append((memory, like.numel()))
        return self.own(memory.view(like.dtype).as_strided(like.shape, like.stride(), MARGIN))

    def own(self, inner):
        self.ranges.append((inner.data_ptr(), inner.data_ptr() + inner.itemsize * extent(inner.shape, inner.stride())))
        return inner

    def among(self, values, fill, strides=None):
        """The values with these strides or their own, in memory that is otherwise ``fill``, gaps included."""
        strides = strides or values.stride()
        memory = torch.full((extent(values.shape, strides) + 2 * MARGIN,), fill, dtype=values.dtype, device=DEVICE)
        return self.own(memory.as_strided(values.shape, strides, MARGIN).copy_(values))

    def check(self):
        for memory, size in self.allocated:
            assert bool((memory[:MARGIN] == SENTINEL).all()), "written before its start"
            assert bool((memory[MARGIN + size :] == SENTINEL).all()), "written behind its end"
            assert not bool((memory[MARGIN : MARGIN + size] == SENTINEL).any()), "not all written"


def extent(shape, strides):
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


class Bounded:
    """Stands in for what reads and writes memory in the interpreter: only inside the ranges."""

    def __init__(self, real, ranges):
        self.real, self.ranges = real, ranges

    def __getattr__(self, name):
        return getattr(self.real, name)

    def look(self, addresses, mask):
        used = addresses[mask.astype(bool)].astype("int64")
        inside = sum(((used >= start) & (used < end)) for start, end in self.ranges) > 0
        assert np.all(inside), "an address outside"

    def load(self, addresses, mask, *rest):
        self.look(addresses, mask)
        return self.real.load(addresses, mask, *rest)

    def store(self, addresses, values, mask):
        self.look(addresses, mask)
        return self.real.store(addresses, values, mask)

    def atomic_rmw(self, operation, addresses, values, mask, *rest):
        self.look(addresses, mask)
        return self.real.atomic_rmw(operation, addresses, values, mask, *rest)


def crops(classes):
    """Odd sizes as they lie in larger tensors, in every layout, and one that is broadcast."""
    base = random_logits(1, classes, 4, 13)
    last = base.contiguous(memory_format=torch.channels_last)
    return {
        "contiguous": base[..., :3, :11].contiguous(),
        "crop": base[..., 1:, 2:],
        "channels_last": last,
        "channels_last crop": last[..., 1:, 2:],
        "every other class": random_logits(1, 2 * classes, 3, 5)[:, ::2],
        "width 1": base[..., :1],
        "width 1, channels_last": last[..., :1],
    }


@pytest.fixture
def guarded(monkeypatch):
    allocated = Guarded()
    for module in (_plan, launch, launch_loss):
        monkeypatch.setattr(module, "torch", allocated)
    if INTERPRETED:
        from triton.runtime import interpreter

        monkeypatch.setattr(interpreter, "_interpreter", Bounded(interpreter._interpreter, allocated.ranges))
    return allocated


@pytest.mark.parametrize(
    ("name", "classes", "dtype"),
    [
        *((name, classes, dtype) for name in crops(1) for classes, dtype in ((1, torch.float32), (3, torch.bfloat16))),
        ("crop", 19, torch.float32),
        ("channels_last crop", 70, torch.float16),  # more than are unrolled
    ],
)
def test_own_memory_only(name, classes, dtype, guarded):
    clean = crops(classes)[name].to(dtype)
    logits = guarded.among(clean, torch.nan)
    shape = (logits.shape[0], *logits.shape[2:])
    valid = guarded.among(torch.arange(shape[1] * shape[2]).view(shape) % 3 > 0, True)
    per_class = guarded.among(torch.linspace(0.1, 1.0, classes, dtype=torch.float64), torch.nan)
    alpha = guarded.among(torch.tensor([0.25], dtype=torch.float64), torch.nan)
    # Nothing here is NaN but what is not valid, so any other NaN in a result came from outside.
    for there in (valid, None):
        predicted, score = launch.read(None, logits, there, None)
        assert torch.equal(score.isnan(), ~valid if there is not None else torch.zeros_like(valid))
    labels, confidence, sums, peaks = launch.observe(None, logits, valid, per_class, [False, True, True, True], 0.5)
    number = valid.sum().double()
    torch.testing.assert_close(torch.stack([sums[:classes].sum(), sums[classes:-1].sum(), sums[-1]]), number.expand(3))
    assert torch.equal(confidence > 0, valid)
    assert torch.equal(peaks.amax(1), confidence.amax((1, 2)))
    for select in (
        lambda: launch.select(None, logits, per_class, False, valid, None, -1),
        lambda: launch.select(None, logits, per_class, True, valid, None, -1),
        lambda: launch.soften(None, logits, per_class, alpha, valid, None, -1),
    ):
        chosen, found, confidence, *soft = select()
        assert torch.equal(found, predicted)
        assert torch.equal(confidence > 0, valid)
        assert bool((chosen[~valid] == -1).all())
        if soft:
            torch.testing.assert_close(soft[0].sum(1), (chosen >= 0).float())
    memory = torch.full((2 * MARGIN + 64 * classes,), SENTINEL, device=DEVICE)
    counts = guarded.own(memory[MARGIN:-MARGIN].view(classes, 64))
    launch.count(None, logits, counts, valid, None, None, False, -8.0, 0.25)
    assert counts.sum() == 64 * classes * SENTINEL + valid.sum()
    assert bool((memory[:MARGIN] == SENTINEL).all())
    assert bool((memory[-MARGIN:] == SENTINEL).all())
    # Around the labels lie some that are out of range: a single one of them would give NaN.
    hard = guarded.among(make_labels(logits.shape, ignore_index=-1), 10**6)
    soft = guarded.among(make_soft(clean.shape, dtype=dtype), torch.nan, clean.stride())
    weights = [
        guarded.among(torch.linspace(1, 2, labels.numel()).view(shape), torch.nan),
        guarded.among(torch.linspace(1, 2, shape[0]), torch.nan),
    ]
    by_class, gamma = (guarded.among(torch.linspace(1, 2, n), torch.nan) for n in (classes, shape[0]))
    by_pixel = guarded.among(torch.linspace(1, 2, labels.numel()).view(shape), torch.nan)
    for target, more in ((hard, (by_class, gamma)), (hard, (None, by_pixel)), (soft, (None, None))):
        for regulariser, which, normalize in SETTINGS:
            arguments = (
                logits,
                target,
                *weights,
                *more,
                None,
                FACTORS * torch.tensor(which),
                regulariser,
                which,
                normalize,
                -1,
            )
            mine, expected = launch_loss.weighted_loss(None, *arguments), loss._forward_in_blocks(*arguments)
            compare(mine, expected)
            grad = guarded.among(torch.linspace(1, 2, labels.numel()).view(shape), torch.nan)
            grad = grad if normalize == "none" else guarded.among(torch.ones(()), torch.nan)
            kept = [guarded.among(part, torch.nan) for part in expected[1:]]
            arguments = (grad, logits, target, *weights, *more, *kept, regulariser, which, -1)
            compare([launch_loss.weighted_loss_backward(None, *arguments)], [loss._backward_in_blocks(*arguments)])
    guarded.check()


def compare(mine, expected):
    for own, wanted in zip(mine, expected, strict=True):
        torch.testing.assert_close(own, wanted, rtol=2e-2 if own.dtype.itemsize == 2 else 1e-4, atol=1e-4)


def test_the_guards_themselves(guarded):
    if INTERPRETED:
        with pytest.raises(Exception, match="an address outside"):
            launch.read(None, torch.zeros(1, 2, 3, 4), None, None)
    guarded.allocated.clear()
    values = guarded.empty((2, 3), dtype=torch.float32, device=DEVICE)
    with pytest.raises(AssertionError, match="not all written"):
        guarded.check()
    values.zero_()
    guarded.check()
    values.as_strided((7,), (1,)).zero_()
    with pytest.raises(AssertionError, match="behind its end"):
        guarded.check()
    values.as_strided((1,), (1,), MARGIN - 1).zero_()
    with pytest.raises(AssertionError, match="before its start"):
        guarded.check()


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU memory is not lent before it is touched")
@pytest.mark.parametrize("axis", range(4))
def test_offsets_beyond_2_to_the_31(axis, guarded):
    """A view of 6 GiB, of which only what it holds is ever touched; each stride alone is below 2^31."""
    shape, strides = (3, 3, 3, 3), [1 << 20, 1 << 18, 1 << 16, 1 << 14]
    strides[axis] = 3 << 29
    try:
        memory = torch.empty(extent(shape, strides), dtype=torch.bfloat16)
    except RuntimeError:
        pytest.skip("no address space for it")
    logits = guarded.own(memory.as_strided(shape, strides).copy_(random_logits(*shape)))
    dense = guarded.own(logits.contiguous())
    for mine, expected in zip(*(launch.read(None, z, None, None) for z in (logits, dense)), strict=True):
        assert torch.equal(mine, expected)
    none, one = (None,) * 5, guarded.own(torch.ones(()))
    for target in (guarded.own(make_labels(shape)), logits):
        again, results = dense if target is logits else target, []
        for z, y in ((logits, target), (dense, again)):
            made = launch_loss.weighted_loss(None, z, y, *none, FACTORS, "kld", [True, True, False], "labelled", 255)
            gradient = launch_loss.weighted_loss_backward(
                None, one, z, y, *none[1:], *made[1:], "kld", [True, True, False], 255
            )
            results.append((*made, gradient))
        for mine, expected in zip(*results, strict=True):  # other programs, other sums
            torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)
