"""The operator `read`: labels, scores and class sums, against NumPy loops, and as torch wants operators to be."""

import math

import numpy as np
import pytest
import torch

from selftrain_seg import ops
from tests.helpers import random_logits
from tests.ops.cases import CHECKS, CLASSES, KINDS, as_on_a_gpu, logits_of, op_module, prior_of, valid_of
from tests.oracles import selection as oracle

OFFSET = torch.tensor([0.5, -1.0, 0.0, 2.0, -0.25])


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


def expected(logits, valid=None, prior=None, offset=None):
    """(labels, scores, class sums), loops in float64."""
    z = logits.double().numpy()
    z = z if offset is None else z + offset.double().numpy()[:, None, None]
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


def check(found, wanted, class_sums=True):
    labels, scores, sums = wanted
    there = ~np.isnan(scores)
    assert np.array_equal(ops.usable(found.score).numpy(), there)
    assert np.array_equal(found.labels.numpy()[there], labels[there])
    np.testing.assert_allclose(found.score.numpy(), scores, rtol=2e-6, atol=2e-6)
    with np.errstate(over="ignore"):
        confidence = np.where(there, 1 / (1 + np.exp(-scores)), 0)
    np.testing.assert_allclose(ops.confidence_of(found.score).numpy(), confidence, rtol=1e-6)
    if class_sums:
        assert found.class_sums.dtype == torch.float64
        np.testing.assert_allclose(found.class_sums.numpy(), sums, rtol=1e-6, atol=1e-30)
    else:
        assert found.class_sums.shape == (0,)


@KINDS
@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize("extra", [None, "offset"])
@pytest.mark.parametrize("gpu", [False, True])
def test_oracle(kind, with_valid, extra, gpu, monkeypatch):
    if gpu:
        as_on_a_gpu(monkeypatch)
    logits = logits_of(kind)
    logits[0, 1, 0, 0], logits[0, 2, 1, 1], logits[1, :, 2, 2] = torch.nan, torch.inf, -torch.inf
    logits[1, 3, 4, 4] = -torch.inf  # a class that cannot be; the pixel is fine
    options = {"valid": valid_of() if with_valid else None, "offset": OFFSET if extra else None}
    check(ops.read(logits, class_sums=True, **options), expected(logits, **options))
    check(ops.read(logits, **options), expected(logits, **options), class_sums=False)


@KINDS
@pytest.mark.parametrize("with_valid", [False, True])
def test_oracle_under_a_prior(kind, with_valid):
    logits, options = logits_of(kind), {"prior": prior_of(), "valid": valid_of() if with_valid else None}
    labels, scores, sums = expected(logits, **options)
    found = ops.read(logits, class_sums=True, **options)
    there = ~np.isnan(scores)
    assert np.array_equal(ops.usable(found.score).numpy(), there)
    assert np.array_equal(found.labels.numpy()[there], labels[there])
    np.testing.assert_allclose(found.score.numpy(), scores, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(found.class_sums.numpy(), sums, rtol=1e-6)  # those of p, whatever the prior


@pytest.mark.parametrize("gpu", [False, True])
def test_class_sums_of_several_blocks_and_saturated_pixels(gpu, monkeypatch):
    if gpu:
        as_on_a_gpu(monkeypatch)
        monkeypatch.setattr(op_module("_blocks"), "_GPU_BLOCK_PIXELS", 1 << 12)
    logits = random_logits(3, 4, 70, 301, scale=30.0).clamp(-80, 80)
    valid = torch.rand(3, 70, 301) < 0.5
    logits[0, 0, 3, 3] = torch.nan
    for there in (None, valid):
        usable = ~logits.isnan().any(1) & (True if there is None else there)
        sums = logits.double().softmax(1).permute(0, 2, 3, 1)[usable].sum(0)
        torch.testing.assert_close(ops.read(logits, valid=there, class_sums=True).class_sums, sums, rtol=1e-6, atol=0)
    # A class that is rare everywhere: its sum is not lost in that of the others.
    logits = torch.stack([torch.zeros(1, 9, 9), torch.full((1, 9, 9), -40.0)], dim=1)
    sums = ops.read(logits, class_sums=True).class_sums
    assert sums[1].item() == pytest.approx(81 * math.exp(-40), rel=1e-5)


def test_saturated_scores_keep_their_order():
    margins = torch.arange(20.0, 85.0)
    logits = torch.stack([margins, torch.zeros_like(margins)]).reshape(1, 2, 1, -1)
    np.testing.assert_allclose(ops.read(logits).score.flatten().numpy(), margins.numpy(), rtol=1e-6)


def test_empty_detached_and_unchanged():
    for shape in ((0, 3, 4, 5), (2, 3, 0, 5)):
        found = ops.read(torch.zeros(shape), class_sums=True)
        assert found.labels.shape == found.score.shape == (shape[0], *shape[2:])
        assert found.class_sums.tolist() == [0.0] * 3
    logits, prior = logits_of("float32").requires_grad_(), prior_of().requires_grad_()
    before = logits.detach().clone()
    assert not any(value.requires_grad for value in ops.read(logits, prior=prior, class_sums=True))
    assert torch.equal(logits, before)


@KINDS
@pytest.mark.parametrize("extra", ["nothing", "valid", "prior", "offset", "all"])
@pytest.mark.parametrize("class_sums", [False, True])
def test_opcheck(kind, extra, class_sums):
    given = (
        valid_of() if extra in ("valid", "all") else None,
        prior_of() if extra in ("prior", "all") else None,
        OFFSET if extra in ("offset", "all") else None,
    )
    if extra in ("valid", "all"):  # opcheck compares values, and NaN equals nothing
        given = (torch.ones_like(given[0]), *given[1:])
    torch.library.opcheck(
        torch.ops.selftrain_seg.read.default, (logits_of(kind), *given, class_sums), test_utils=CHECKS
    )


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
