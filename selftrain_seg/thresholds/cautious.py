"""Portions that shrink when a round has made the network worse."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

from selftrain_seg import _checks
from selftrain_seg.thresholds.schedules import PortionSchedule

__all__ = ["cautious_portion"]


def cautious_portion(
    scores: Sequence[float],
    schedule: PortionSchedule,
    *,
    shrink: float = 0.5,
    tolerance: float = 0.0,
    least: float = 0.01,
) -> float:
    """Return the portion of the next round, from a schedule and the scores of the rounds so far.

    A round has helped if its score is at least the best of all scores before it, less ``tolerance``. With g rounds that
    have helped and w that have not, the portion is ``max(schedule(g) · shrink^w, least)``, at most ``schedule(g)``: a
    round that helped moves the schedule on, another leaves it where it is and shrinks the portion. All of it follows
    from the scores, so there is no state: save the scores (``RoundCheck`` does) and a resumed run goes on with
    the same portions.

    Args:
        scores: of the network before the first round and after each one since, the higher the better, without target
            labels: ``[s_0]`` for the first round's portion. NaN counts as worse.
        schedule: portions of rounds that help, such as ``PortionSchedule(0.2, 0.05, 0.5)``.
        shrink: factor for a round that has not helped, in (0, 1].
        tolerance: how far a score may fall by chance, at least 0, in the scores' unit.
        least: portion below which nothing shrinks, in (0, 1].

    Returns:
        A float in (0, 1].

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: ``scores`` is empty, or a number is out of its range.

    Example:
        >>> schedule = PortionSchedule(0.2, 0.1, 0.5)
        >>> cautious_portion([44.0], schedule)
        0.2
        >>> cautious_portion([44.0, 45.0], schedule)  # the round helped: the schedule's next
        0.3
        >>> cautious_portion([44.0, 45.0, 41.0], schedule)  # this one did not: half of it
        0.15
    """
    if isinstance(scores, (str, bytes)) or not isinstance(scores, Sequence):
        raise TypeError(f"`scores`: expected a sequence of numbers, got {type(scores).__name__}")
    if not isinstance(schedule, PortionSchedule):
        raise TypeError(f"`schedule`: expected a PortionSchedule, got {type(schedule).__name__}")
    if not scores:
        raise ValueError("`scores`: expected at least that of the network before the first round, got none")
    _checks.check_real(shrink, "shrink", 0.0, 1.0, open_low=True)
    _checks.check_real(tolerance, "tolerance", 0.0, math.inf)
    _checks.check_real(least, "least", 0.0, 1.0, open_low=True)
    best, helped, failed = -math.inf, -1, 0  # the first score is no round's
    for place, score in enumerate(scores):
        value = _number(score, f"scores[{place}]")
        if place == 0 or value >= best - tolerance:
            helped += 1
        else:
            failed += 1
        best = best if math.isnan(value) else max(best, value)
    whole = schedule(helped)
    return round(max(whole * shrink**failed, min(least, whole)), 12)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}`: expected a number, got {type(value).__name__}")
    return float(value)
