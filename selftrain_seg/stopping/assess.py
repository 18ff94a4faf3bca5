"""Assessment of a check on finished runs: how often it picks the best round, and what a wrong pick costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from selftrain_seg import _checks
from selftrain_seg.stopping.check import RoundCheck

__all__ = ["Assessment", "assess_check"]


class Assessment(NamedTuple):
    """The result of ``assess_check``, one entry per run, in the unit of the true scores.

    Attributes:
        picked: the round whose weights the check kept, 0 for those before training.
        best: the round with the highest true score, the first of equal ones.
        stopped: the round after which the check stopped, or None if it never did.
        regret: true score of the best round minus that of the picked round, at least 0.
        gain: true score of the picked round minus that before training; negative if the check did harm.
        last_gain: true score of the last round minus that before training, the gain of training to the end.

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
        """Return the share of runs whose regret is at most ``tolerance``; NaN without runs."""
        return _mean([float(value <= tolerance) for value in self.regret])

    @property
    def mean_regret(self) -> float:
        """Mean regret over runs; NaN without runs."""
        return _mean(self.regret)

    @property
    def worst_regret(self) -> float:
        """Largest regret; NaN without runs."""
        return max(self.regret, default=math.nan)

    @property
    def worst_gain(self) -> float:
        """Smallest gain; NaN without runs."""
        return min(self.gain, default=math.nan)


def assess_check(
    check: RoundCheck, runs: Sequence[Sequence[Mapping[str, float]]], truths: Sequence[Sequence[float]]
) -> Assessment:
    """Replay a check on the records of finished runs and compare its picks with the true scores.

    Each run is recorded round by round until the verdict is not ``"continue"``; the check does not see later rounds. To
    use all rounds, set the patience of the check above their number. To compare scores, assess one check per score.

    Args:
        check: supplies the score, tolerance, patience and limits; its own records are neither used nor changed.
        runs: the scores as passed to ``record``, per run and round, round 0 first.
        truths: the true scores per run and round, such as mean IoU on labelled target images; higher is better.

    Returns:
        ``Assessment`` with one entry per run.

    Raises:
        TypeError: ``check`` is not a ``RoundCheck``, or a value is not a number.
        ValueError: the numbers of runs or rounds differ, a run has no round, a true score is not finite, or a round
            lacks a score that the check needs.

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
        raise ValueError(f"`truths`: expected {len(runs)} runs, as many as `runs`, got {len(truths)}")
    entries: list[tuple[int, int, int | None, float, float, float]] = []
    for run, (rounds, given) in enumerate(zip(runs, truths, strict=True)):
        truth = [_finite(value, f"truths[{run}][{round}]") for round, value in enumerate(given)]
        if not truth or len(rounds) != len(truth):
            raise ValueError(f"`truths[{run}]`: expected {len(rounds)} rounds, at least 1, got {len(truth)}")
        picked, stopped = _replay(check, rounds)
        best = max(range(len(truth)), key=truth.__getitem__)
        regret, gain = truth[best] - truth[picked], truth[picked] - truth[0]
        entries.append((picked, best, stopped, regret, gain, truth[-1] - truth[0]))
    return Assessment(*([tuple(column) for column in zip(*entries, strict=True)] or [()] * 6))


def _replay(check: RoundCheck, rounds: Sequence[Mapping[str, float]]) -> tuple[int, int | None]:
    """Return the picked round, and the round after which the check stops."""
    again = RoundCheck(check.score, tolerance=check.tolerance, patience=check.patience, limits=check.limits)
    for round, scores in enumerate(rounds):
        again.record(round, scores)
        if again.verdict().action != "continue":
            return again.verdict().best, round
    return again.verdict().best, None


def _finite(value: Any, name: str) -> float:
    _checks.check_real(value, name, -math.inf, math.inf)
    if math.isinf(value):
        raise ValueError(f"`{name}`: expected a finite number, got {value}")
    return float(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
