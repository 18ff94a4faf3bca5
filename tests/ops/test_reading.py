"""The operators `read` and `observe` against NumPy loops, and as torch wants operators to be."""

import math

import numpy as np
import pytest
import torch

from selftrain_seg import ops
from tests.helpers import random_logits
from tests.ops.cases import CHECKS, CLASSES, KINDS, as_on_a_gpu, logits_of, op_module, prior_of, valid_of
from tests.oracles import selection as oracle

USUAL = torch.tensor([0.6, 0.9, 1e-3, 0.2, 0.4], dtype=torch.float64)
FLOOR = 0.45


def log_odds(z, q, peaks):
    """Of the winner's ``p_c q_c / Q_c``, without saturation: its logarithm less that of what is left to 1."""
    log_p = z - (z.max() + math.log(np.exp(z - z.max()).sum()))
    if q is None:
        c = int(z.argmax())
        others = np.delete(z, c)
        return c, z[c] - (others.max() + math.log(np.exp(others - others.max()).sum())) if len(others) else math.inf
    c = int((log_p + np.log(q)).argmax())
    share = math.exp(log_p[c]) * q[c] / peaks[c]
    return c, math.log(share / (1 - share)) if share < 1 else math.inf


def expected(logits, valid=None, prior=None, relative_to=None):
    """(labels, scores, class sums), loops in float64."""
    z = logits.double().numpy()
    z = z if relative_to is None else z - relative_to.log().numpy()[:, None, None]
    z = z if valid is None else oracle.without(z, valid.numpy())
    q = None if prior is None else prior.double().numpy()
    peaks = None if q is None else q.reshape(len(q), -1).max(1)
    labels, scores = np.zeros((len(z), *z.shape[2:]), np.int64), np.full((len(z), *z.shape[2:]), np.nan)
    sums = np.zeros(z.shape[1])
    for b, i, j, pixel in oracle.pixels(z):
        if oracle.usable(pixel):
            labels[b, i, j], scores[b, i, j] = log_odds(pixel, None if q is None else q[:, i, j], peaks)
            sums += oracle.softmax(pixel)
    return labels, scores, sums


def check(found, labels, scores, sharp=1.0):
    there = ~np.isnan(scores)
    assert np.array_equal(ops.usable(found.score).numpy(), there)
    assert np.array_equal(found.labels.numpy()[there], labels[there])
    np.testing.assert_allclose(found.score.numpy(), scores, rtol=2e-6 * sharp, atol=2e-6 * sharp)
    np.testing.assert_allclose(ops.confidence_of(found.score).numpy(), probability(scores), rtol=1e-6)


def probability(scores):
    with np.errstate(over="ignore"):
        return np.where(np.isnan(scores), 0, 1 / (1 + np.exp(-scores)))


def check_observed(found, labels, scores, sums):
    """With all that can be asked for."""
    there, m, classes = ~np.isnan(scores), probability(scores), range(len(sums))
    np.testing.assert_allclose(found.confidence.numpy(), m, rtol=1e-6)
    assert np.array_equal(found.labels.numpy()[there], labels[there])
    counts = [(there & (labels == c) & (m >= FLOOR)).sum() for c in classes]
    wanted = [(m**2).sum(), m.sum(), *sums, *counts, (there & (m < FLOOR)).sum(), there.sum()]
    assert found.sums.dtype == torch.float64
    np.testing.assert_allclose(found.sums.numpy(), wanted, rtol=1e-6, atol=1e-30)
    peaks = [[np.where(labels[b] == c, m[b], 0).max(initial=0.0) for c in classes] for b in range(len(m))]
    np.testing.assert_allclose(found.peaks.numpy(), peaks, rtol=1e-6)


ALL = {"moments": True, "probs": True, "counts": True, "peaks": True, "floor": FLOOR}


@KINDS
@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize("extra", [None, "relative"])
@pytest.mark.parametrize("gpu", [False, True])
def test_oracle(kind, with_valid, extra, gpu, monkeypatch):
    if gpu:
        as_on_a_gpu(monkeypatch)
    logits = logits_of(kind)
    logits[0, 1, 0, 0], logits[0, 2, 1, 1], logits[1, :, 2, 2] = torch.nan, torch.inf, -torch.inf
    logits[1, 3, 4, 4] = -torch.inf  # a class that cannot be; the pixel is fine
    valid, usual = valid_of() if with_valid else None, USUAL if extra else None
    if usual is None:
        check(ops.read(logits, valid=valid), *expected(logits, valid)[:2])
    wanted = expected(logits, valid, relative_to=usual)
    check_observed(ops.observe(logits, valid=valid, relative_to=usual, **ALL), *wanted)
    alone = ops.observe(logits, valid=valid, relative_to=usual)
    assert alone.sums.numel() == alone.peaks.numel() == 0
    np.testing.assert_allclose(alone.confidence.numpy(), probability(wanted[1]), rtol=1e-6)


def test_each_sum_alone_is_what_it_is_among_all():
    logits, valid = logits_of("float32"), valid_of()
    whole = ops.observe(logits, valid=valid, **ALL)
    parts = dict(zip(("moments", "probs", "counts"), whole.sums[:-1].split([2, CLASSES, CLASSES + 1]), strict=True))
    for name, part in parts.items():
        alone = ops.observe(logits, valid=valid, floor=FLOOR, **{name: True})
        assert torch.equal(alone.sums, torch.cat([part, whole.sums[-1:]]))
        assert alone.peaks.numel() == 0
    alone = ops.observe(logits, valid=valid, peaks=True)
    assert torch.equal(alone.peaks, whole.peaks)
    assert alone.sums.numel() == 0


@KINDS
@pytest.mark.parametrize("with_valid", [False, True])
def test_oracle_under_a_prior(kind, with_valid):
    logits, options = logits_of(kind), {"prior": prior_of(), "valid": valid_of() if with_valid else None}
    check(ops.read(logits, **options), *expected(logits, **options)[:2], sharp=10.0)


@pytest.mark.parametrize("gpu", [False, True])
def test_sums_of_several_blocks_and_saturated_pixels(gpu, monkeypatch):
    if gpu:
        as_on_a_gpu(monkeypatch)
        monkeypatch.setattr(op_module("_blocks"), "_GPU_BLOCK_PIXELS", 1 << 12)
    logits = random_logits(3, 4, 70, 301, scale=30.0).clamp(-80, 80)
    valid = torch.rand(3, 70, 301) < 0.5
    logits[0, 0, 3, 3] = torch.nan
    for there in (None, valid):
        usable = ~logits.isnan().any(1) & (True if there is None else there)
        probs = logits.double().softmax(1).permute(0, 2, 3, 1)[usable]
        sums = ops.observe(logits, valid=there, probs=True).sums
        torch.testing.assert_close(sums, torch.cat([probs.sum(0), usable.sum().view(1)]), rtol=1e-6, atol=0)
    # A class that is rare everywhere: its sum is not lost in that of the others.
    logits = torch.stack([torch.zeros(1, 9, 9), torch.full((1, 9, 9), -40.0)], dim=1)
    sums = ops.observe(logits, probs=True).sums
    assert sums[1].item() == pytest.approx(81 * math.exp(-40), rel=1e-5)


def test_saturated_scores_keep_their_order():
    margins = torch.arange(20.0, 85.0)
    logits = torch.stack([margins, torch.zeros_like(margins)]).reshape(1, 2, 1, -1)
    np.testing.assert_allclose(ops.read(logits).score.flatten().numpy(), margins.numpy(), rtol=1e-6)


def test_empty_detached_and_unchanged():
    for shape in ((0, 3, 4, 5), (2, 3, 0, 5)):
        found = ops.observe(torch.zeros(shape), **ALL)
        assert found.labels.shape == found.confidence.shape == (shape[0], *shape[2:])
        assert found.sums.tolist() == [0.0] * 10
        assert found.peaks.tolist() == [[0.0] * 3] * shape[0]
    logits, prior = logits_of("float32").requires_grad_(), prior_of().requires_grad_()
    before = logits.detach().clone()
    for found in (ops.read(logits, prior=prior), ops.observe(logits, **ALL)):
        assert not any(value.requires_grad for value in found)
    assert torch.equal(logits, before)


@KINDS
@pytest.mark.parametrize("extra", ["nothing", "valid", "prior", "relative", "all"])
def test_opcheck(kind, extra):
    # opcheck compares values, and NaN equals nothing
    valid = torch.ones_like(valid_of()) if extra in ("valid", "all") else None
    prior = prior_of() if extra in ("prior", "all") else None
    usual = USUAL if extra in ("relative", "all") else None
    which = [extra == "all", True, extra == "all", extra != "nothing"]
    for name, arguments in (("read", (valid, prior)), ("observe", (valid, usual, which, FLOOR))):
        operator = getattr(torch.ops.selftrain_seg, name).default
        torch.library.opcheck(operator, (logits_of(kind), *arguments), test_utils=CHECKS)


@pytest.mark.parametrize("values", ["random", "ties", "nan", "inf"])
@pytest.mark.parametrize("classes", [1, 2, CLASSES, 19])
def test_winner_is_the_same_on_every_device(values, classes, monkeypatch):
    winner = op_module("_winner").winner
    block = random_logits(2, classes, 6, 7)
    if values == "ties":
        block = block.round().clamp(-1, 1)
        block[0] = 0.0
        block[1, :, 0] = -0.0
        block[1, 0, 0] = 0.0
    if values == "nan":
        block[0, classes // 2, ::2], block[1, 0, 1] = torch.nan, torch.nan
    if values == "inf":
        block[0, classes - 1, 0], block[0, 0, 1], block[1, :, 2], block[1, -1, 3] = (
            torch.inf,
            -torch.inf,
            -torch.inf,
            -torch.inf,
        )
        block[1, :, 4] = torch.inf
    found = winner(block)
    as_on_a_gpu(monkeypatch)
    other = winner(block)
    for a, b in ((found[0], other[0]), (found[2], other[2])):
        assert a.dtype == b.dtype == torch.float32
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
    usable = (found[0] - found[0]).squeeze(1) == 0
    assert torch.equal(found[1][usable], other[1][usable])
    for labels in (found[1], other[1]):
        assert labels.dtype == torch.int64
        assert labels.min() >= 0
        assert labels.max() < classes
    first = np.argmax(block.numpy(), axis=1)  # NumPy's is the first of equals
    assert np.array_equal(found[1].numpy()[usable.numpy()], first[usable.numpy()])
