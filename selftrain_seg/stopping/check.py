"""Check after each round, without target labels, whether training still helps."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from selftrain_seg import _checks

__all__ = ["RoundCheck", "Verdict"]


class Verdict(NamedTuple):
    """The result of ``RoundCheck.verdict``.

    Attributes:
        action: ``"continue"``; ``"stop"``: earlier rounds helped but the latest ones did not; or ``"do not adapt"``: no
            round is better than the network before training.
        best: the round whose weights should be kept, 0 for those before training.
        reason: one sentence to print.
    """

    action: Literal["continue", "stop", "do not adapt"]
    best: int
    reason: str


class RoundCheck:
    """Record scores after each round, track the best round, and decide when to stop or not to adapt at all.

    One score decides; higher is better. s_r is the score of round r, and round 0 is the network before training:

        ``best ← 0``; for r = 1, 2, …: ``best ← r`` if ``s_r > s_best + tolerance`` and round r is within all limits.

    A gain of at most ``tolerance`` counts as noise. After ``patience`` rounds without a new best round the verdict is
    ``"stop"``, or ``"do not adapt"`` if the best is still round 0. A round with a NaN score is never best.

    If source images are available, use the mean IoU on source images restyled to the target as this score. Scores that
    only use the output of the network (soft neighbourhood density, entropy, agreement of teacher and student) also rise
    when a network becomes confident in its mistakes; record them for information. ``limits`` bounds other scores, such
    as ``class_drift``.

    Args:
        score: name of the score that decides.
        tolerance: gain that a round must exceed, at least 0, in the unit of the score. Estimate it from two evaluations
            of one network on differently restyled images.
        patience: number of rounds to wait for a new best round, at least 1.
        limits: maps names of scores to their largest accepted values. A round above a limit, or with NaN, is never
            best. Round 0 is exempt.

    State / distributed:
        ``state_dict`` holds the recorded scores, for JSON or ``torch.save``. A resumed run gets the same verdict from
        them. Reduce the scores over ranks before recording them: if ranks record different scores, their verdicts
        differ.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    References:
        Prechelt, "Early Stopping - But When?", 1998, on patience. Saito et al., "Tune it the Right Way", ICCV 2021, on
        choosing by scores without target labels.

    Example:
        >>> check = RoundCheck("restyled", tolerance=0.5, limits={"drift": 0.2})
        >>> check.record(0, {"restyled": 44.0, "drift": 0.0})
        >>> check.record(1, {"restyled": 46.1, "drift": 0.03})
        >>> check.verdict().action, check.verdict().best
        ('continue', 1)
        >>> check.record(2, {"restyled": 46.4, "drift": 0.05})
        >>> check.verdict()
        Verdict(action='stop', best=1, reason='round 2 is not better than round 1 (restyled 46.4 against 46.1)')
    """

    def __init__(
        self,
        score: str,
        *,
        tolerance: float = 0.0,
        patience: int = 1,
        limits: Mapping[str, float] | None = None,
    ) -> None:
        if not isinstance(score, str):
            raise TypeError(f"`score`: expected the name of a score, got {type(score).__name__}")
        _checks.check_real(tolerance, "tolerance", 0.0, math.inf)
        _checks.check_count(patience, "patience")
        limits = {} if limits is None else limits
        if not isinstance(limits, Mapping):
            raise TypeError(f"`limits`: expected a mapping of names to numbers, got {type(limits).__name__}")
        for name, limit in limits.items():
            _checks.check_real(limit, f"limits[{name!r}]", -math.inf, math.inf)
        if score in limits:
            raise ValueError(f"`limits`: expected scores other than {score!r}, which decides")
        self.score, self.tolerance, self.patience = score, float(tolerance), int(patience)
        self.limits = {name: float(limit) for name, limit in limits.items()}
        self._rounds: list[dict[str, float]] = []

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.score!r}, tolerance={self.tolerance}, patience={self.patience}, "
            f"limits={self.limits}, rounds={len(self._rounds)})"
        )

    @property
    def rounds(self) -> list[dict[str, float]]:
        """A copy of the recorded scores, round by round."""
        return [dict(scores) for scores in self._rounds]

    @property
    def scores(self) -> list[float]:
        """The deciding score of each round, for ``thresholds.cautious_portion``."""
        return [scores[self.score] for scores in self._rounds]

    def record(self, round: int, scores: Mapping[str, float | Tensor]) -> None:
        """Record the scores of a round. If a score is a tensor, the host waits for its device.

        Args:
            round: 0 for the network before training, then 1, 2, … in order. The latest round may be recorded again,
                which replaces it; a resumed run may do so.
            scores: maps names to numbers or one-element tensors. It must have the deciding score and those with a
                limit, and may have others. Infinite values count as NaN.

        Raises:
            TypeError: ``round`` is not an int, ``scores`` is not a mapping, or a score is not a number.
            ValueError: ``round`` is out of order, the deciding score or one with a limit is missing, or the deciding
                score of round 0 is NaN.
        """
        _checks.check_count(round, "round", minimum=0)
        if round not in (len(self._rounds), len(self._rounds) - 1):
            expected = f"{len(self._rounds)}" + (f" or {len(self._rounds) - 1} again" if self._rounds else "")
            raise ValueError(f"`round`: expected {expected}, as rounds are recorded in order from 0, got {round}")
        self._rounds[round:] = [self._checked(round, scores)]

    def verdict(self) -> Verdict:
        """Judge the rounds so far.

        Returns:
            ``Verdict(action, best, reason)``. After the last round, keep the weights of round ``best``, whatever the
            action.

        Raises:
            ValueError: nothing was recorded yet.
        """
        if not self._rounds:
            raise ValueError("`verdict`: expected at least one call of record before, got none")
        best, last = self._best(), len(self._rounds) - 1
        found = self._compared(last, best)
        if last - best < self.patience:
            return Verdict("continue", best, found)
        if best > 0:
            return Verdict("stop", best, found)
        return Verdict("do not adapt", 0, f"adaptation is not helping here: {found}")

    def state_dict(self) -> dict[str, Any]:
        """Return the recorded scores in a form that JSON can hold: ``{"rounds": [{name: number or None for NaN}]}``."""
        return {
            "rounds": [
                {name: None if math.isnan(value) else value for name, value in scores.items()}
                for scores in self._rounds
            ]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the recorded scores with those of a ``state_dict``.

        Args:
            state: state of a ``RoundCheck`` with the same scores. Tolerance, patience and limits are not in it.

        Raises:
            TypeError: ``state`` is not the state of a ``RoundCheck``, or a name or number in it has the wrong type.
            ValueError: a round lacks a score. The recorded scores are then not changed.
        """
        if not isinstance(state, Mapping) or not isinstance(state.get("rounds"), list):
            raise TypeError('`state`: expected the state of a RoundCheck, {"rounds": [...]}, got something else')
        rounds: list[dict[str, float]] = []
        for round, scores in enumerate(state["rounds"]):
            if isinstance(scores, Mapping):
                scores = {name: math.nan if value is None else value for name, value in scores.items()}
            rounds.append(self._checked(round, scores))
        self._rounds = rounds

    def _checked(self, round: int, scores: Any) -> dict[str, float]:
        if not isinstance(scores, Mapping):
            raise TypeError(f"`scores`: expected a mapping of names to numbers, got {type(scores).__name__}")
        values = {}
        for name, value in scores.items():
            if not isinstance(name, str):
                raise TypeError(f"`scores`: expected names of scores, got {name!r}")
            values[name] = _number(value, f"scores[{name!r}]")
        for name in (self.score, *self.limits):
            if name not in values:
                raise ValueError(f"`scores`: expected {name!r} among them, got {sorted(values)}")
        if round == 0 and math.isnan(values[self.score]):
            raise ValueError(
                f"`scores`: expected a finite {self.score!r} for round 0, to compare all rounds with, got nan"
            )
        return values

    def _best(self) -> int:
        best = 0
        for round, scores in enumerate(self._rounds[1:], 1):
            within = all(scores[name] <= limit for name, limit in self.limits.items())
            if within and scores[self.score] > self._rounds[best][self.score] + self.tolerance:
                best = round
        return best

    def _compared(self, last: int, best: int) -> str:
        now, then = self._rounds[last], self._rounds[best]
        if last == 0:
            return f"only the network before training was recorded ({self.score} {now[self.score]:.4g})"
        if last == best:
            return f"round {last} is the best so far ({self.score} {now[self.score]:.4g})"
        for name, limit in self.limits.items():
            if not now[name] <= limit:
                return f"round {last} exceeds a limit ({name} {now[name]:.4g}, at most {limit:.4g})"
        scores = f"{self.score} {now[self.score]:.4g} against {then[self.score]:.4g}"
        return f"round {last} is not better than round {best} ({scores})"


def _number(value: Any, name: str) -> float:
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            raise TypeError(f"`{name}`: expected a number, got {value.dtype} {tuple(value.shape)}")
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}`: expected a number, got {type(value).__name__}")
    value = float(value)
    return value if math.isfinite(value) else math.nan
