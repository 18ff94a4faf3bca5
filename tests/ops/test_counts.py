"""The operator `count` and what it is made of, against loops, on both kinds of device."""

import math

import numpy as np
import pytest
import torch

from selftrain_seg import ops
from tests.ops.cases import CHECKS, CLASSES, KINDS, as_on_a_gpu, logits_of, op_module, prior_of, valid_of

BINS, LOW, WIDTH = 64, -8.0, 0.25


def counted(logits, **options):
    counts = torch.zeros(CLASSES, BINS, dtype=torch.int64)
    ops.count(logits, counts, low=LOW, bin_width=WIDTH, **options)
    return counts


@KINDS
@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize("every_class", [False, True])
@pytest.mark.parametrize("gpu", [False, True])
def test_oracle(kind, with_valid, every_class, gpu, monkeypatch):
    if gpu:
        as_on_a_gpu(monkeypatch)
    logits = logits_of(kind)
    logits[0, 1, 0, 0], logits[0, 2, 1, 1], logits[1, :, 2, 2], logits[1, 3, 4, 4] = (
        torch.nan,
        torch.inf,
        -torch.inf,
        -torch.inf,
    )
    valid, wanted = valid_of() if with_valid else None, np.zeros((CLASSES, BINS), np.int64)
    close = 0
    for b in range(2):
        for i in range(logits.shape[2]):
            for j in range(logits.shape[3]):
                z = logits[b, :, i, j].double().numpy()
                if np.isnan(z).any() or not math.isfinite(z.max()) or (valid is not None and not valid[b, i, j]):
                    continue
                e = np.exp(z - z.max())
                for c in range(CLASSES) if every_class else [int(z.argmax())]:
                    odds = e[c] / np.delete(e, c).sum()
                    place = (math.log(odds) - LOW) / WIDTH if odds else -math.inf
                    close += abs(place - round(place)) < 1e-5 if math.isfinite(place) else 0
                    wanted[c, int(min(max(place, 0), BINS - 1))] += 1
    assert close == 0  # no score so near an edge that its rounding could decide
    found = counted(logits, valid=valid, every_class=every_class)
    assert np.array_equal(found.numpy(), wanted)


def test_adds_in_place_to_what_is_there():
    logits, counts = logits_of("float32"), torch.full((CLASSES, BINS), 3)
    ops.count(logits, counts, low=LOW, bin_width=WIDTH)
    assert torch.equal(counts - 3, counted(logits))
    assert counted(logits).sum() == 2 * 6 * 7


@KINDS
@pytest.mark.parametrize("extra", ["nothing", "valid", "prior", "prior and peaks", "all"])
@pytest.mark.parametrize("every_class", [False, True])
def test_opcheck(kind, extra, every_class):
    prior = prior_of() if extra in ("prior", "prior and peaks", "all") else None
    peaks = ops.prior_peaks(prior) + 0.5 if extra in ("prior and peaks", "all") else None
    valid = valid_of() if extra in ("valid", "all") else None
    counts = torch.zeros(CLASSES, BINS, dtype=torch.int64)
    args = (logits_of(kind), counts, valid, prior, peaks, every_class, LOW, WIDTH)
    torch.library.opcheck(torch.ops.selftrain_seg.count.default, args, test_utils=CHECKS)


def test_peaks_of_the_whole_prior_serve_its_parts():
    logits, prior = logits_of("float32"), prior_of()
    whole = counted(logits, prior=prior)
    peaks, parts = ops.prior_peaks(prior), torch.zeros_like(whole)
    for row in range(logits.shape[2]):
        ops.count(
            logits[:, :, row : row + 1], parts, low=LOW, bin_width=WIDTH, prior=prior[:, row : row + 1], peaks=peaks
        )
    assert torch.equal(parts, whole)
    assert not torch.equal(counted(logits, prior=prior, peaks=2 * peaks), whole)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_tally_by_loops(dtype):
    index = torch.randint(0, 41, (3, 50, 7), generator=torch.Generator().manual_seed(0)).to(dtype)  # 40: not counted
    wanted = [int((index == k).sum()) for k in range(40)]
    tally = op_module("counts").tally
    for part, times in ((index, 1), (index[:0], 0), (index.transpose(0, 2), 1)):
        assert tally(part, 40).tolist() == [times * n for n in wanted]


@pytest.mark.parametrize(("low", "width"), [(-8.0, 0.25), (-7.3, 0.25), (-8.0, 0.3)])
def test_bin_index_by_loops(low, width):
    bin_index = op_module("counts").bin_index
    scores = torch.tensor([-100.0, low, low + 0.999 * width, 0.1, 5.0, 1e9, -math.inf, math.inf, math.nan, 0.1, 0.1])
    classes = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 0, 3, -1])
    found = bin_index(scores, classes, (3, 40), low, width)
    for place, score, c in zip(found.tolist(), scores.double().tolist(), classes.tolist(), strict=True):
        if math.isnan(score) or not 0 <= c < 3:
            assert place == 120
        else:
            at = (score - low) / width
            assert place == c * 40 + (0 if at < 0 else 39 if at >= 39 else math.floor(at)), score
    assert found.dtype == torch.int32


def test_class_counts_by_loops():
    labels = torch.randint(0, 4, (2, 5, 6), generator=torch.Generator().manual_seed(0))
    which = torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    expected = [sum(int(w) for y, w in zip(labels.flatten(), which.flatten(), strict=True) if y == c) for c in range(4)]
    assert ops.class_counts(labels, which, 4).tolist() == expected


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_pair_counts_by_loops(dtype, gpu, monkeypatch):
    if gpu:
        as_on_a_gpu(monkeypatch)
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randint(-2, 6, (3, 5, 8), generator=generator).to(dtype) for _ in range(2))  # as uint8 also 254
    one[0, 0], other[1, 1] = 255, 255
    wanted = [[0] * 5 for _ in range(4)]
    for i, j in zip(one.flatten().tolist(), other.flatten().tolist(), strict=True):
        if 0 <= i < 4:
            wanted[i][j if 0 <= j < 4 else 4] += 1
    assert ops.pair_counts(one, other, 4).tolist() == wanted
    assert ops.pair_counts(one.transpose(1, 2), other.transpose(1, 2), 4).tolist() == wanted  # not contiguous
    assert ops.pair_counts(one[:0], other[:0], 4).tolist() == [[0] * 5] * 4
    assert sum(map(sum, wanted)) > 30
