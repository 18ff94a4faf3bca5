"""Portions that shrink after rounds that made the network worse."""

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
    """Return the portion of the next round from a schedule and the scores of the rounds so far.

    A round has helped if its score is at least the best earlier score minus ``tolerance``. After g rounds that helped
    and w that did not, the portion is ``max(schedule(g) · shrink^w, least)``, at most ``schedule(g)``. A round that
    helped advances the schedule; any other round shrinks the portion. The function has no state: if the scores are
    saved, as ``RoundCheck`` does, a resumed run uses the same portions.

    Args:
        scores: score of the network before the first round and after each round, higher is better. For the first round,
            pass ``[s_0]``. NaN counts as worse.
        schedule: portions after rounds that help, such as ``PortionSchedule(0.2, 0.05, 0.5)``.
        shrink: factor for each round that did not help, in (0, 1].
        tolerance: how far a score may fall by chance, at least 0, in the unit of the scores.
        least: smallest portion that shrinking can reach, in (0, 1].

    Returns:
        A float in (0, 1].

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``scores`` is empty, or a number is out of range.

    Example:
        >>> schedule = PortionSchedule(0.2, 0.1, 0.5)
        >>> cautious_portion([44.0], schedule)
        0.2
        >>> cautious_portion([44.0, 45.0], schedule)  # the round helped: the next portion
        0.3
        >>> cautious_portion([44.0, 45.0, 41.0], schedule)  # the round did not help: half the portion
        0.15
    """
    if isinstance(scores, (str, bytes)) or not isinstance(scores, Sequence):
        raise TypeError(f"`scores`: expected a sequence of numbers, got {type(scores).__name__}")
    if not isinstance(schedule, PortionSchedule):
        raise TypeError(f"`schedule`: expected a PortionSchedule, got {type(schedule).__name__}")
    if not scores:
        raise ValueError("`scores`: expected at least the score of the network before the first round, got none")
    _checks.check_real(shrink, "shrink", 0.0, 1.0, open_low=True)
    _checks.check_real(tolerance, "tolerance", 0.0, math.inf)
    _checks.check_real(least, "least", 0.0, 1.0, open_low=True)
    best, helped, failed = -math.inf, -1, 0  # the first score precedes all rounds
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
