"""Whether the rounds help, judged after each of them without target labels."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from selftrain_seg import _checks

__all__ = ["RoundCheck", "Verdict"]


class Verdict(NamedTuple):
    """What ``RoundCheck`` says of the rounds so far.

    Attributes:
        action: ``"go on"``; ``"stop"``: the rounds have helped and do so no longer; or ``"do not adapt"``: no round is
            better than the network before training.
        best: the round whose weights to keep, 0 for those before training.
        reason: one sentence for people.
    """

    action: Literal["go on", "stop", "do not adapt"]
    best: int
    reason: str


class RoundCheck:
    """Record scores after each round, keep the best round, and say when to stop or not to adapt at all.

    One score decides; the higher, the better. With s_r that of round r, and round 0 the network before training,

        ``best ← 0``; for r = 1, 2, …: ``best ← r`` if ``s_r > s_best + tolerance`` and round r is within all limits.

    The first of equal rounds is kept, so a gain within the noise is none. After ``patience`` rounds without a new best
    one the verdict is ``"stop"``, or ``"do not adapt"`` if the best is still round 0. A NaN score is never best.

    Let the mean IoU on labelled source images restyled to the target decide, where there are source images. Scores of
    the network's output alone (soft neighbourhood density, entropy, agreement of teacher and student) also rise when
    a network becomes sure of its mistakes; record them beside it, for people to see. ``limits`` makes some of them
    binding: ``class_drift``, say.

    Args:
        score: name of the score that decides.
        tolerance: what a round must gain to be better than noise, at least 0, in the score's unit. The difference of
            two evaluations of one network on differently restyled images is a measure of it.
        patience: rounds to wait for a new best one, at least 1.
        limits: name of a score → its largest acceptable value; a round above one of them, or with NaN there, is never
            best. Round 0 is exempt.

    State / distributed:
        ``state_dict`` holds what was recorded, for JSON or for ``torch.save``, and the verdict follows from that: a
        killed run goes on with the same. Every rank must record the same scores, else ranks part at the verdict:
        reduce scores before.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range.

    References:
        Prechelt, "Early Stopping - But When?", 1998, on patience. Saito et al., "Tune it the Right Way", ICCV 2021, on
        choosing by scores without target labels.

    Example:
        >>> check = RoundCheck("restyled", tolerance=0.5, limits={"drift": 0.2})
        >>> check.record(0, {"restyled": 44.0, "drift": 0.0})
        >>> check.record(1, {"restyled": 46.1, "drift": 0.03})
        >>> check.verdict().action, check.verdict().best
        ('go on', 1)
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
            raise ValueError(f"`limits`: expected other scores than {score!r}, of which the highest is best")
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
        """A copy of what was recorded, round by round."""
        return [dict(scores) for scores in self._rounds]

    @property
    def scores(self) -> list[float]:
        """What the score that decides was in each round, as ``thresholds.cautious_portion`` takes it."""
        return [scores[self.score] for scores in self._rounds]

    def record(self, round: int, scores: Mapping[str, float | Tensor]) -> None:
        """Take down the scores of a round. The host waits for the device where a score is a tensor there.

        Args:
            round: 0 for the network before training, then 1, 2, … in order. The latest may be recorded again and is
                replaced, since a run may be killed between a record and a checkpoint.
            scores: name → number, or a tensor of one: the one that decides, those with a limit, and any others.
                What is not finite counts as NaN.

        Raises:
            TypeError: ``round`` is no int, ``scores`` no mapping, or a score no number.
            ValueError: ``round`` is out of order; a score that decides or has a limit is missing; or that of round 0
                is NaN, so that no round could be compared with it.
        """
        _checks.check_count(round, "round", minimum=0)
        if round not in (len(self._rounds), len(self._rounds) - 1):
            expected = f"{len(self._rounds)}" + (f" or {len(self._rounds) - 1} again" if self._rounds else "")
            raise ValueError(f"`round`: expected {expected}, as rounds are recorded in order from 0, got {round}")
        self._rounds[round:] = [self._checked(round, scores)]

    def verdict(self) -> Verdict:
        """Judge the rounds so far.

        Returns:
            ``Verdict(action, best, reason)``. When the last round is over, keep the weights of ``best``, whatever the
            action.

        Raises:
            ValueError: nothing was recorded yet.
        """
        if not self._rounds:
            raise ValueError("`verdict`: expected at least one call of record before, got none")
        best, last = self._best(), len(self._rounds) - 1
        found = self._compared(last, best)
        if last - best < self.patience:
            return Verdict("go on", best, found)
        if best > 0:
            return Verdict("stop", best, found)
        return Verdict("do not adapt", 0, f"adaptation is not helping here: {found}")

    def state_dict(self) -> dict[str, Any]:
        """Return what was recorded, as JSON can hold it: ``{"rounds": [{name: number or None for NaN}]}``."""
        return {
            "rounds": [
                {name: None if math.isnan(value) else value for name, value in scores.items()}
                for scores in self._rounds
            ]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned; what was recorded before is forgotten.

        Args:
            state: of a ``RoundCheck`` for the same scores. Tolerance, patience and limits are settings and not in it.

        Raises:
            TypeError: it is no mapping, or holds something else than names and numbers.
            ValueError: it has no rounds, or these lack a score. Nothing is changed then.
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
                f"`scores`: expected a finite {self.score!r} of round 0, with which all rounds are compared, got nan"
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
            return f"nothing but the network before training is known ({self.score} {now[self.score]:.4g})"
        if last == best:
            return f"round {last} is the best so far ({self.score} {now[self.score]:.4g})"
        for name, limit in self.limits.items():
            if not now[name] <= limit:
                return f"round {last} is beyond a limit ({name} {now[name]:.4g}, at most {limit:.4g})"
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
