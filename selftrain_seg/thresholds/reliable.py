"""A portion for each class, by how reliable the class is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.thresholds._portions import check_reals, decimals, of_classes

__all__ = ["reliable_portion"]


def reliable_portion(
    portion: float | Tensor,
    reliability: Tensor,
    *,
    low: float = 0.0,
    high: float = 1.0,
    power: float = 1.0,
    unknown: float = 0.0,
) -> Tensor:
    """Give each class the part of a portion that its reliability deserves.

    ``ρ_c = ρ · clamp((r_c - low) / (high - low), 0, 1) ^ power``: nothing up to ``low``, all of ρ from ``high`` on,
    and never less for a higher reliability. A class that does not agree with itself then yields few labels, so that
    it cannot grow by its own mistakes.

    With ``portion=1`` the classes that are reliable are labelled on **every** pixel predicted as them, borders
    included, and the others on their most confident pixels only. Labels on confident interiors alone leave borders
    untaught, and a border between two classes then drifts to the one with the lower threshold. Use
    ``select_hard`` with such thresholds: they are low, so ``select_reweighted`` would give a class with portion 1 the
    pixels of others.

    Args:
        portion: ρ, a number in [0, 1], or (C,) one a class.
        reliability: (C,) floating point in [0, 1] and clamped to it: of ``ClassAgreement``, say. NaN where a class was
            not seen.
        low: reliability up to which nothing is selected, in [0, high).
        high: reliability from which on all of the portion is selected, in (low, 1].
        power: exponent of the ramp between them, above 0; larger ones are stricter.
        unknown: factor of the portion for a class whose reliability is NaN, in [0, 1]. By default what nobody has
            measured is not used.

    Returns:
        (C,) float64 in [0, 1], on the device of ``reliability``: for ``ClassBalancedThreshold.compute``.

    Raises:
        TypeError: ``reliability`` is no floating-point tensor, or another argument no number.
        ValueError: ``reliability`` is not (C,), ``portion`` has another shape, or a number is out of its range.

    Example:
        >>> import torch
        >>> reliability = torch.tensor([0.95, 0.7, 0.3, float("nan")])
        >>> reliable_portion(0.2, reliability, low=0.5, high=0.9)
        tensor([0.2000, 0.1000, 0.0000, 0.0000], dtype=torch.float64)
        >>> reliable_portion(1.0, reliability, low=0.5, high=0.9, power=2.0)  # all of class 0, borders too
        tensor([1.0000, 0.2500, 0.0000, 0.0000], dtype=torch.float64)
    """
    check_reals(reliability, "reliability")
    _checks.check_real(low, "low", 0.0, 1.0)
    _checks.check_real(high, "high", float(low), 1.0, open_low=True)
    _checks.check_real(power, "power", 0.0, math.inf, open_low=True)
    _checks.check_real(unknown, "unknown", 0.0, 1.0)
    whole = of_classes(portion, reliability)
    part = ((decimals(reliability) - low) / (high - low)).clamp(0.0, 1.0) ** power
    return whole * torch.where(part.isnan(), unknown, part)
