"""The check after each round: which round it keeps, what it says, how it goes on after a kill."""

import json
import math
import random

import numpy as np
import pytest
import torch

from selftrain_seg.stopping import RoundCheck
from selftrain_seg.thresholds import PortionSchedule, cautious_portion

NAN = math.nan


def checked(scores, **options):
    check = RoundCheck("s", **options)
    for round, score in enumerate(scores):
        check.record(round, {"s": score})
    return check


def best_by_loops(scores, tolerance):
    best = 0
    for round in range(1, len(scores)):
        if not math.isnan(scores[round]) and scores[round] - scores[best] > tolerance:
            best = round
    return best


@pytest.mark.parametrize(
    ("scores", "options", "action", "best"),
    [
        ([44.0], {}, "continue", 0),  # nothing but the start is known
        ([44.0, 45.0], {}, "continue", 1),
        ([44.0, 42.6], {}, "do not adapt", 0),
        ([44.0, 44.0], {}, "do not adapt", 0),  # a tie is no gain
        ([44.0, NAN], {}, "do not adapt", 0),
        ([44.0, -math.inf], {}, "do not adapt", 0),
        ([44.0, math.inf], {}, "do not adapt", 0),  # nothing scores infinity
        ([44.0, 45.0, 45.0], {}, "stop", 1),  # the first of equal rounds
        ([44.0, 45.0, 43.0], {}, "stop", 1),
        ([44.0, 45.0, NAN], {}, "stop", 1),
        ([44.0, 45.0, 46.0], {}, "continue", 2),
        ([44.0, 44.4], {"tolerance": 0.5}, "do not adapt", 0),
        ([44.0, 44.5], {"tolerance": 0.5}, "do not adapt", 0),  # must exceed it
        ([44.0, 44.6], {"tolerance": 0.5}, "continue", 1),
        ([44.0, 43.0], {"patience": 2}, "continue", 0),
        ([44.0, 43.0, 43.5], {"patience": 2}, "do not adapt", 0),
        ([44.0, 43.0, 45.0], {"patience": 2}, "continue", 2),
        ([44.0, 45.0, 44.0, 44.0], {"patience": 2}, "stop", 1),
        ([44.0, 44.4, 44.8], {"tolerance": 0.5, "patience": 2}, "continue", 2),  # two steps add up to a gain
        ([0, -1], {}, "do not adapt", 0),
    ],
)
def test_verdicts(scores, options, action, best):
    verdict = checked(scores, **options).verdict()
    assert (verdict.action, verdict.best) == (action, best)
    assert verdict.reason


@pytest.mark.parametrize("tolerance", [0.0, 0.6])
def test_the_best_round_is_that_of_loops(tolerance):
    draw = random.Random(1)  # noqa: S311
    for _ in range(200):
        scores = [draw.choice([40.0, 40.5, 41.0, 41.2, 43.0, NAN]) for _ in range(draw.randint(1, 8))]
        scores[0] = 40.5
        check = checked(scores, tolerance=tolerance, patience=99)
        assert check.verdict().best == best_by_loops(scores, tolerance)


def test_reasons_are_sentences_with_numbers():
    assert checked([44.0]).verdict().reason == "only the network before training was recorded (s 44)"
    assert checked([44.0, 45.25]).verdict().reason == "round 1 is the best so far (s 45.25)"
    assert checked([44.0, 38.1]).verdict().reason == (
        "adaptation is not helping here: round 1 is not better than round 0 (s 38.1 against 44)"
    )


def test_limits_veto_a_round_but_not_the_start():
    check = RoundCheck("s", limits={"drift": 0.2})
    check.record(0, {"s": 44.0, "drift": 0.9})
    check.record(1, {"s": 50.0, "drift": 0.21})
    verdict = check.verdict()
    assert (verdict.action, verdict.best) == ("do not adapt", 0)
    assert verdict.reason.endswith("round 1 exceeds a limit (drift 0.21, at most 0.2)")
    check.record(1, {"s": 50.0, "drift": NAN})
    assert check.verdict().best == 0
    check.record(1, {"s": 50.0, "drift": 0.2})  # the latest may be recorded again
    assert check.verdict().best == 1


def test_scores_beside_the_one_that_decides_are_kept_and_do_not_matter():
    check = RoundCheck("restyled")
    check.record(0, {"restyled": torch.tensor(0.44), "snd": 4.1})
    check.record(1, {"restyled": torch.tensor([0.45], dtype=torch.float64), "snd": NAN, "entropy": 0.9})
    assert check.verdict().best == 1
    assert check.rounds[0] == {"restyled": pytest.approx(0.44), "snd": 4.1}
    check.record(2, {"restyled": np.float32("nan"), "snd": np.float32(3)})
    assert math.isnan(check.scores[2])
    check.record(2, {"restyled": 0.4})
    check.rounds[0]["restyled"] = 1.0  # a copy
    assert check.scores == [pytest.approx(0.44), 0.45, 0.4]
    assert cautious_portion(check.scores, PortionSchedule(0.2, 0.1, 0.5)) == 0.15


def test_a_killed_run_goes_on_with_the_same_verdict():
    scores = [44.0, 45.0, NAN, 45.3, 44.0]
    straight, text = checked(scores, patience=3, tolerance=0.5), None
    for round, score in enumerate(scores):
        check = RoundCheck("s", patience=3, tolerance=0.5)  # another process each round
        if text is not None:
            check.load_state_dict(json.loads(text))
        check.record(round, {"s": score})
        text = json.dumps(check.state_dict(), allow_nan=False)
    assert check.verdict() == straight.verdict()
    assert check.verdict().best == 1
    check.record(4, {"s": 47.0})  # killed between the record and a checkpoint: once more
    assert check.verdict().best == 4
    assert len(check.rounds) == 5


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (None, TypeError),
        ([], TypeError),
        ({}, TypeError),
        ({"rounds": {}}, TypeError),
        ({"rounds": [1.0]}, TypeError),
        ({"rounds": [{"s": "44"}]}, TypeError),
        ({"rounds": [{"s": True}]}, TypeError),
        ({"rounds": [{"s": None}]}, ValueError),
        ({"rounds": [{"s": 44.0}, {"other": 1.0}]}, ValueError),
    ],
)
def test_broken_states_change_nothing(state, error):
    check = checked([44.0, 45.0])
    with pytest.raises(error, match="expected"):
        check.load_state_dict(state)
    assert check.scores == [44.0, 45.0]


def test_bad_arguments():
    check = RoundCheck("s", limits={"drift": 0.2})
    with pytest.raises(ValueError, match="`verdict`: expected at least one call of record before, got none"):
        check.verdict()
    with pytest.raises(ValueError, match="`round`: expected 0, as rounds are recorded in order from 0, got 1"):
        check.record(1, {"s": 1.0, "drift": 0.0})
    with pytest.raises(ValueError, match=r"`scores`: expected 's' among them, got \['drift'\]"):
        check.record(0, {"drift": 0.0})
    with pytest.raises(ValueError, match="`scores`: expected 'drift' among them"):
        check.record(0, {"s": 0.0})
    with pytest.raises(ValueError, match="`scores`: expected a finite 's' for round 0"):
        check.record(0, {"s": NAN, "drift": 0.0})
    with pytest.raises(TypeError, match=r"`scores\['s'\]`: expected a number"):
        check.record(0, {"s": torch.ones(2), "drift": 0.0})
    with pytest.raises(TypeError, match=r"`scores\['s'\]`: expected a number, got NoneType"):
        check.record(0, {"s": None, "drift": 0.0})
    with pytest.raises(TypeError, match="`scores`: expected a mapping"):
        check.record(0, 44.0)
    with pytest.raises(TypeError, match="`scores`: expected names"):
        check.record(0, {"s": 1.0, "drift": 0.0, 3: 1.0})
    with pytest.raises(TypeError, match="`round`: expected an int"):
        check.record(0.0, {"s": 1.0})
    check.record(0, {"s": 1.0, "drift": 0.0})
    check.record(1, {"s": 1.0, "drift": 0.0})
    with pytest.raises(ValueError, match=r"`round`: expected 2 or 1 again, as rounds are .* got 0"):
        check.record(0, {"s": 1.0, "drift": 0.0})
    assert len(check.rounds) == 2
    assert "rounds=2" in repr(check)
    for options, error, name in [
        ({"score": 3}, TypeError, "score"),
        ({"tolerance": -1.0}, ValueError, "tolerance"),
        ({"tolerance": NAN}, ValueError, "tolerance"),
        ({"patience": 0}, ValueError, "patience"),
        ({"limits": [0.2]}, TypeError, "limits"),
        ({"limits": {"drift": "x"}}, TypeError, r"limits\['drift'\]"),
        ({"limits": {"s": 1.0}}, ValueError, "limits"),
    ]:
        with pytest.raises(error, match=f"`{name}`: expected"):
            RoundCheck(**{"score": "s", **options})
