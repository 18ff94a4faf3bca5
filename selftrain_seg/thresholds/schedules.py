"""Schedules of the portion of pixels or source images over rounds."""

from __future__ import annotations

import builtins
from typing import NamedTuple

import torch
from torch import Tensor

from selftrain_seg import _checks

__all__ = [
    "CBST_SP_PORTIONS",
    "DST_CBC_PORTIONS",
    "GTA5_SOURCE_PORTIONS",
    "IAST_PORTIONS",
    "SYNTHIA_SOURCE_PORTIONS",
    "PortionSchedule",
    "linear_portion",
    "source_subset",
]


def linear_portion(round: int, *, start: float = 0.2, step: float = 0.05, stop: float = 0.5) -> float:
    """Return the portion of a round, ``min(start + step · round, stop)``; defaults are those of CBST and CRST.

    Args:
        round: 0 for the first round.
        start: portion of the first round, in (0, 1]. CBST and CRST: 0.2 (0.15 with the spatial prior).
        step: added each round, in [0, 1]. CBST and CRST: 0.05.
        stop: the largest portion, in [start, 1]. CBST and CRST: 0.5.

    Returns:
        A float in (0, 1], rounded to 12 decimals, so 0.2 + 2 · 0.05 is 0.3.

    Raises:
        TypeError: an argument is not a number. ValueError: ``round`` is negative, or a portion is outside its range.

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


class PortionSchedule(NamedTuple):
    """A ``linear_portion`` with fixed settings, such as those of a paper.

    Attributes:
        start: portion of the first round.
        step: added each round.
        stop: the largest portion.

    Example:
        >>> IAST_PORTIONS
        PortionSchedule(start=0.2, step=0.05, stop=0.3)
        >>> IAST_PORTIONS(1), IAST_PORTIONS.rounds(4)
        (0.25, [0.2, 0.25, 0.3, 0.3])
    """

    start: float
    step: float
    stop: float

    def __call__(self, round: int) -> float:
        """Return the portion of a round, 0 for the first."""
        return linear_portion(round, start=self.start, step=self.step, stop=self.stop)

    def rounds(self, count: int) -> list[float]:
        """Return the portions of the first ``count`` rounds."""
        return [self(round) for round in range(count)]


CBST_SP_PORTIONS = PortionSchedule(0.15, 0.05, 0.5)
"""Portions of CBST with the spatial prior."""
DST_CBC_PORTIONS = PortionSchedule(0.2, 0.2, 1.0)
"""Portions of DST-CBC (Feng et al., arXiv:2004.08514)."""
IAST_PORTIONS = PortionSchedule(0.2, 0.05, 0.3)
"""``portion`` of ``InstanceAdaptiveSelector`` over the rounds of IAST (Mei et al., ECCV 2020)."""
GTA5_SOURCE_PORTIONS = PortionSchedule(0.03, 0.0025, 0.06)
"""Share of GTA5 images that CBST and CRST train on, see ``source_subset``."""
SYNTHIA_SOURCE_PORTIONS = PortionSchedule(0.02, 0.0025, 0.06)
"""Share of SYNTHIA images that CBST trains on, see ``source_subset``."""


def source_subset(num_images: int, portion: float, *, seed: int = 0, redraw: int | None = None) -> Tensor:
    """Draw the source images of a round.

    Returns the first ``round(portion · num_images)`` images of a random order, at least one; CBST and CRST round down.
    The seed fixes the order, so a larger portion contains a smaller one and images accumulate, as in CBST. With
    ``redraw`` set to the number of the round, each round draws a new order, as in CRST.

    Args:
        num_images: size of the source set, at least 1.
        portion: share to use, in (0, 1], for example ``GTA5_SOURCE_PORTIONS(round)``.
        seed: seed of the order; the global generator is not touched.
        redraw: None, or a number that changes the order.

    Returns:
        (K,) int64 indices on the CPU, without repetition.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``num_images`` below 1, or ``portion`` outside (0, 1].

    Example:
        >>> few, more = source_subset(100, 0.03), source_subset(100, 0.06)
        >>> len(few), len(more), bool((more[:3] == few).all())
        (3, 6, True)
    """
    _checks.check_count(num_images, "num_images")
    _checks.check_real(portion, "portion", 0.0, 1.0, open_low=True)
    _checks.check_count(seed, "seed", minimum=0)
    if redraw is not None:
        _checks.check_count(redraw, "redraw", minimum=0)
    generator = torch.Generator().manual_seed(seed if redraw is None else (seed + 1) * 1_000_003 + redraw)
    return torch.randperm(num_images, generator=generator)[: max(1, round(portion * num_images))]
