"""The check itself against the truth, and how far class shares move."""

import math
import random

import numpy as np
import pytest
import torch

from selftrain_seg.stopping import RoundCheck, assess_check, class_drift


def runs_of(*scores):
    return [[{"s": value} for value in run] for run in scores]


def test_a_check_by_hand():
    runs = runs_of([40, 42, 41, 50], [44, 43, 42], [27, 28, 29], [30])
    truths = [[40, 41, 42, 45], [44.0, 42.6, 37.7], [27.4, 29.1, 28.6], [30.0]]
    found = assess_check(RoundCheck("s"), runs, truths)
    assert found.picked == (1, 0, 2, 0)  # the first run stops at round 2 and never sees the third
    assert found.stopped == (2, 1, None, None)
    assert found.best == (3, 0, 1, 0)
    assert found.regret == pytest.approx((4.0, 0.0, 0.5, 0.0))
    assert found.gain == pytest.approx((1.0, 0.0, 1.2, 0.0))
    assert found.last_gain == pytest.approx((5.0, -6.3, 1.2, 0.0))
    assert (found.hit_rate(), found.hit_rate(0.6)) == (0.5, 0.75)
    assert found.mean_regret == pytest.approx(4.5 / 4)
    assert (found.worst_regret, found.worst_gain) == (4.0, 0.0)
    patient = assess_check(RoundCheck("s", patience=9), runs, truths)
    assert patient.picked == (3, 0, 2, 0)
    assert patient.regret[0] == 0.0


def test_many_runs_by_loops():
    draw = random.Random(2)  # noqa: S311
    runs, truths = [], []
    for _ in range(60):
        rounds = draw.randint(1, 6)
        truths.append([draw.choice([40.0, 41.0, 42.5, 44.0]) for _ in range(rounds)])
        runs.append([{"s": value + draw.gauss(0, 2)} for value in truths[-1]])
    found = assess_check(RoundCheck("s", tolerance=0.5, patience=2), runs, truths)
    for run, (rounds, truth) in enumerate(zip(runs, truths, strict=True)):
        best, since, stopped = 0, 0, None
        for round in range(1, len(rounds)):
            since += 1
            if rounds[round]["s"] > rounds[best]["s"] + 0.5:
                best, since = round, 0
            if since == 2:
                stopped = round
                break
        assert (found.picked[run], found.stopped[run]) == (best, stopped)
        assert found.regret[run] == max(truth) - truth[best]
        assert found.gain[run] == truth[best] - truth[0]
        assert truth[found.best[run]] == max(truth)
        assert max(truth) not in truth[: found.best[run]]
    assert found.hit_rate() == np.mean([value == 0 for value in found.regret])


def test_a_perfect_score_has_no_regret_and_the_check_is_left_alone():
    check = RoundCheck("s", patience=9)
    check.record(0, {"s": 7.0})
    truths = [[1.0, 3.0, 2.0], [3.0, 1.0, 2.0]]
    found = assess_check(check, runs_of(*truths), truths)
    assert found.mean_regret == 0.0
    assert found.hit_rate() == 1.0
    assert check.scores == [7.0]


def test_limits_count_in_an_assessment():
    runs = [[{"s": 1.0, "drift": 0.0}, {"s": 2.0, "drift": 0.5}]]
    assert assess_check(RoundCheck("s", limits={"drift": 0.2}), runs, [[1.0, 0.0]]).picked == (0,)
    assert assess_check(RoundCheck("s"), runs, [[1.0, 0.0]]).worst_gain == -1.0


def test_no_runs():
    found = assess_check(RoundCheck("s"), [], [])
    assert found.picked == ()
    assert math.isnan(found.hit_rate())
    assert math.isnan(found.mean_regret)
    assert math.isnan(found.worst_regret)
    assert math.isnan(found.worst_gain)


@pytest.mark.parametrize(
    ("check", "runs", "truths", "error", "message"),
    [
        ("s", [], [], TypeError, "`check`: expected a RoundCheck, got str"),
        (None, [[]], [], ValueError, "`truths`: expected 1 runs, as many as `runs`, got 0"),
        (None, [[]], [[]], ValueError, r"`truths\[0\]`: expected 0 rounds, at least 1, got 0"),
        (None, [[{"s": 1.0}]], [[1.0, 2.0]], ValueError, r"`truths\[0\]`: expected 1 rounds"),
        (None, [[{"s": 1.0}]], [[math.nan]], ValueError, r"`truths\[0\]\[0\]`: expected"),
        (None, [[{"s": 1.0}]], [[math.inf]], ValueError, r"`truths\[0\]\[0\]`: expected a finite number, got inf"),
        (None, [[{"t": 1.0}]], [[1.0]], ValueError, "`scores`: expected 's' among them"),
    ],
)
def test_bad_arguments(check, runs, truths, error, message):
    with pytest.raises(error, match=message):
        assess_check(check or RoundCheck("s"), runs, truths)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
def test_drift_by_loops(dtype):
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 9, (3, 2, 5), generator=generator).to(dtype)
    reference = torch.tensor([5, 0, 1, 1, 0]).to(dtype)
    counts[1, 1] = 0  # no pixel
    found = class_drift(counts, reference)
    assert found.shape == (3, 2)
    assert found.dtype == torch.float64
    for place in np.ndindex(3, 2):
        row, total = counts[place].tolist(), float(counts[place].sum())
        if total == 0:
            assert found[place].isnan()
            continue
        expected = sum(abs(n / total - m / 7) for n, m in zip(row, reference.tolist(), strict=True)) / 2
        assert found[place].item() == pytest.approx(expected, abs=1e-12)


def test_drift_is_a_distance_between_0_and_1():
    a, b = torch.tensor([3, 1, 0]), torch.tensor([0, 0, 8])
    assert class_drift(a, 5 * a) == 0.0
    assert class_drift(a, b) == class_drift(b, a) == 1.0
    assert class_drift(torch.tensor([2**62, 2**62]), torch.tensor([1, 1])) == 0.0
    assert class_drift(a, torch.zeros(3)).isnan()


@pytest.mark.parametrize(
    ("counts", "reference", "error", "message"),
    [
        ([1, 2], torch.ones(2), TypeError, "`counts`: expected a torch.Tensor"),
        (torch.ones(2), torch.ones(2).bool(), TypeError, "`reference`: expected counts"),
        (torch.ones(()), torch.ones(2), ValueError, r"`counts`: expected \(..., C\)"),
        (torch.ones(2), torch.ones(3), ValueError, "`reference`: expected 2 classes, got 3"),
        (torch.ones(2), torch.ones(2, device="meta"), ValueError, "`reference`: expected device"),
        (torch.ones(2, 3), torch.ones(4, 3), ValueError, r"`reference`: expected a shape that broadcasts with"),
    ],
)
def test_bad_counts(counts, reference, error, message):
    with pytest.raises(error, match=message):
        class_drift(counts, reference)
