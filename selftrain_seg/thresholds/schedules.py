"""How the portion of pixels to trust grows from round to round."""

from __future__ import annotations

import builtins

from selftrain_seg import _checks

__all__ = ["linear_portion"]


def linear_portion(round: int, *, start: float = 0.2, step: float = 0.05, stop: float = 0.5) -> float:
    """Return the portion of round number ``round``: ``min(start + step · round, stop)``.

    Args:
        round: 0 for the first round.
        start: portion of the first round, in (0, 1]. CBST and CRST: 0.2 (0.15 with the spatial prior).
        step: added each round, at least 0. CBST and CRST: 0.05.
        stop: the largest portion, in [start, 1]. CBST and CRST: 0.5.

    Returns:
        A float in (0, 1], rounded to 12 decimals so that 0.2 + 2 · 0.05 is 0.3.

    Raises:
        TypeError: an argument is not a number.
        ValueError: ``round`` is negative, or a portion is outside its range.

    References:
        CBST (Zou et al., ECCV 2018), "self-paced curriculum"; CRST (Zou et al., ICCV 2019).

    Example:
        >>> [linear_portion(r) for r in range(8)]
        [0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.5]
    """
    _checks.check_count(round, "round", minimum=0)
    _checks.check_real(start, "start", 0.0, 1.0, open_low=True)
    _checks.check_real(step, "step", 0.0, 1.0)
    _checks.check_real(stop, "stop", start, 1.0)
    return builtins.round(min(start + step * round, stop), 12)
