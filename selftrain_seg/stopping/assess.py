"""How good a check is: how often it picks the right round, and what it costs where it does not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from selftrain_seg import _checks
from selftrain_seg.stopping.check import RoundCheck

__all__ = ["Assessment", "assess_check"]


class Assessment(NamedTuple):
    """What a check did in many runs, a run an entry, in the unit of the truth.

    Attributes:
        picked: the round whose weights it kept, 0 for those before training.
        best: the round that was best in truth; the first of equal ones.
        stopped: the round after which it stopped, or None where it never did.
        regret: truth of the best round less that of the picked one, at least 0.
        gain: truth of the picked round less that before training; negative where the check did harm.
        last_gain: truth of the last round less that before training: what training to the end would have given.

    Example:
        >>> Assessment((1, 0), (1, 2), (2, 1), (0.0, 0.4), (2.0, 0.0), (1.0, -3.0)).hit_rate(0.5)
        1.0
    """

    picked: tuple[int, ...]
    best: tuple[int, ...]
    stopped: tuple[int | None, ...]
    regret: tuple[float, ...]
    gain: tuple[float, ...]
    last_gain: tuple[float, ...]

    def hit_rate(self, tolerance: float = 0.0) -> float:
        """Return the share of runs whose regret is at most a tolerance; NaN without runs."""
        return _mean([float(value <= tolerance) for value in self.regret])

    @property
    def mean_regret(self) -> float:
        """Mean over runs; NaN without runs."""
        return _mean(self.regret)

    @property
    def worst_regret(self) -> float:
        """The largest; NaN without runs."""
        return max(self.regret, default=math.nan)

    @property
    def worst_gain(self) -> float:
        """The smallest gain, which is what following the check has cost at worst; NaN without runs."""
        return min(self.gain, default=math.nan)


def assess_check(
    check: RoundCheck, runs: Sequence[Sequence[Mapping[str, float]]], truths: Sequence[Sequence[float]]
) -> Assessment:
    """Replay a check on the records of finished runs and compare its choice with the truth.

    Every run is recorded round by round until the verdict is no longer ``"go on"``: later rounds the check never gets
    to see. To see what a score says of all rounds, give the check a patience beyond their number; to compare
    scores, assess one check for each.

    Args:
        check: whose score, tolerance, patience and limits are used; what it has recorded itself is neither used nor
            changed.
        runs: by run and round, round 0 first: the scores, as they were given to ``record``.
        truths: by run and round: what the scores are to predict, such as mean IoU on labelled target images. The
            higher, the better.

    Returns:
        ``Assessment``, with a value for each run.

    Raises:
        TypeError: ``check`` is no ``RoundCheck``, or a value no number.
        ValueError: numbers of runs or rounds differ, a run has no round, a truth is not finite, or a round lacks a
            score that the check needs.

    Example:
        >>> runs = [[{"a": 1.0}, {"a": 2.0}, {"a": 1.5}], [{"a": 1.0}, {"a": 1.5}, {"a": 0.5}]]
        >>> truths = [[40.0, 42.0, 41.0], [44.0, 43.5, 40.0]]
        >>> found = assess_check(RoundCheck("a"), runs, truths)
        >>> found.picked, found.best, found.regret
        ((1, 1), (1, 0), (0.0, 0.5))
        >>> found.hit_rate(), found.mean_regret, found.worst_gain
        (0.5, 0.25, -0.5)
    """
    if not isinstance(check, RoundCheck):
        raise TypeError(f"`check`: expected a RoundCheck, got {type(check).__name__}")
    if len(runs) != len(truths):
        raise ValueError(f"`truths`: expected those of {len(runs)} runs, got {len(truths)}")
    entries: list[tuple[int, int, int | None, float, float, float]] = []
    for run, (rounds, given) in enumerate(zip(runs, truths, strict=True)):
        truth = [_finite(value, f"truths[{run}][{round}]") for round, value in enumerate(given)]
        if not truth or len(rounds) != len(truth):
            raise ValueError(f"`truths[{run}]`: expected those of {len(rounds)} rounds, at least 1, got {len(truth)}")
        picked, stopped = _replay(check, rounds)
        best = max(range(len(truth)), key=truth.__getitem__)
        regret, gain = truth[best] - truth[picked], truth[picked] - truth[0]
        entries.append((picked, best, stopped, regret, gain, truth[-1] - truth[0]))
    return Assessment(*([tuple(column) for column in zip(*entries, strict=True)] or [()] * 6))


def _replay(check: RoundCheck, rounds: Sequence[Mapping[str, float]]) -> tuple[int, int | None]:
    """The round that is kept, and the one after which the check stops."""
    again = RoundCheck(check.score, tolerance=check.tolerance, patience=check.patience, limits=check.limits)
    for round, scores in enumerate(rounds):
        again.record(round, scores)
        if again.verdict().action != "go on":
            return again.verdict().best, round
    return again.verdict().best, None


def _finite(value: Any, name: str) -> float:
    _checks.check_real(value, name, -math.inf, math.inf)
    if math.isinf(value):
        raise ValueError(f"`{name}`: expected a finite number, got {value}")
    return float(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
