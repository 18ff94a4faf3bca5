"""Kernels touch no memory but their own: inputs lie among NaN, outputs among sentinels; and they write all of it.

In the interpreter every address is looked at, too: a read from outside need not show in a result.
"""

import numpy as np
import pytest
import torch

from selftrain_seg.kernels import launch
from selftrain_seg.losses._core import pixel_maps
from tests.helpers import random_logits
from tests.kernels.test_kernels import DEVICE, INTERPRETED, plain, pytestmark, switched_on  # noqa: F401
from tests.losses.cases import make_labels, make_soft

MARGIN = 1 << 13  # elements before and after, more than a tile has
SENTINEL = 77


class Guarded:
    """Stands in for torch in launch.py: what it allocates lies among sentinels, and is full of them."""

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
    monkeypatch.setattr(launch, "torch", allocated)
    if INTERPRETED:
        from triton.runtime import interpreter

        monkeypatch.setattr(interpreter, "_interpreter", Bounded(interpreter._interpreter, allocated.ranges))
    return allocated


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [(1, torch.float32), (2, torch.bfloat16), (19, torch.float32), (150, torch.float16), (256, torch.bfloat16)],
)
@pytest.mark.parametrize("name", crops(1))
def test_own_memory_only(name, classes, dtype, guarded):
    clean = crops(classes)[name].to(dtype)
    logits = guarded.among(clean, torch.nan)
    shape = (logits.shape[0], *logits.shape[2:])
    per_class = guarded.among(torch.linspace(0.1, 1.0, classes), torch.nan)
    # Nothing here is NaN, so one NaN in a result came from outside.
    labels, log_confidence = launch.top(logits)
    assert bool((log_confidence <= 0).all())
    for select, arguments in (
        (launch.select_hard, ()),
        (launch.select_reweighted, ()),
        (launch.select_soft, (4.0,)),
    ):
        chosen, predicted, confidence, *soft = select(logits, per_class, *arguments, -1)
        assert torch.equal(predicted, labels)
        torch.testing.assert_close(confidence, log_confidence.exp())
        if soft:
            torch.testing.assert_close(soft[0].sum(1), (chosen >= 0).float())
    memory = torch.full((2 * MARGIN + 64 * classes,), SENTINEL, device=DEVICE)
    counts = guarded.own(memory[MARGIN:-MARGIN].view(classes, 64))
    launch.count_scores(logits, counts, low=-8.0, bin_width=0.25)
    assert counts.sum() == 64 * classes * SENTINEL + labels.numel()
    assert bool((memory[:MARGIN] == SENTINEL).all())
    assert bool((memory[-MARGIN:] == SENTINEL).all())
    # Around the labels lie some that are out of range: a single one of them would give NaN.
    hard = guarded.among(make_labels(logits.shape, ignore_index=-1), 10**6)
    soft = guarded.among(make_soft(clean.shape, dtype=dtype), torch.nan, clean.stride())
    for target in (hard, soft):
        valid, *maps = launch.pixel_maps(logits, target, launch._KINDS, -1)
        grads = {
            kind: guarded.among(torch.linspace(1, 2, labels.numel()).view(shape), torch.nan)
            for kind in launch._KINDS[:-1]
        }
        grads["ignored_entropy"] = guarded.among(torch.ones(()), torch.nan).expand(shape)
        gradient = launch.pixel_gradient(logits, target, grads, -1)
        expected = plain(reference, clean.to(DEVICE), target, grads)
        for mine, wanted in zip((valid, *maps, gradient), expected, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=2e-2 if mine.dtype.itemsize == 2 else 1e-4, atol=2e-5)
    guarded.check()


def reference(logits, target, grads):
    leaf = logits.detach().requires_grad_()
    valid, *maps = pixel_maps(leaf, target, *grads, ignore_index=-1)
    return valid, *(m.detach() for m in maps), *torch.autograd.grad(maps, leaf, list(grads.values()))


def test_the_guards_themselves(guarded):
    if INTERPRETED:
        with pytest.raises(Exception, match="an address outside"):
            launch.top(torch.zeros(1, 2, 3, 4))
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
    for mine, expected in zip(launch.top(logits), launch.top(dense), strict=True):
        assert torch.equal(mine, expected)
    for target in (guarded.own(make_labels(shape)), logits):
        again = dense if target is logits else target
        mine, expected = (launch.pixel_maps(z, y, ("nll", "kld"), 255) for z, y in ((logits, target), (dense, again)))
        assert all(map(torch.equal, mine, expected))
        one = {"nll": guarded.own(torch.ones(()).expand(3, 3, 3))}
        mine, expected = (launch.pixel_gradient(z, y, one, 255) for z, y in ((logits, target), (dense, again)))
        assert torch.equal(mine, expected)
