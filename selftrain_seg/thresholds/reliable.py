"""Portions per class that depend on the reliability of the class."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.thresholds._portions import decimals, per_class

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
    """Scale the portion of each class by its reliability.

    ``ρ_c = ρ · clamp((r_c - low) / (high - low), 0, 1) ^ power``: 0 up to ``low``, ρ from ``high`` on. An unreliable
    class gets few labels, so it cannot grow by its own mistakes.

    With ``portion=1``, reliable classes are labelled on **every** pixel predicted as them, including borders, and the
    others on their most confident pixels only. If only the confident interior of regions is labelled, the border
    between two classes drifts into the class with the higher threshold. Use ``select_hard`` with these thresholds: they
    are low for classes with portion 1, so ``select_reweighted`` would assign pixels of other classes to them.

    Args:
        portion: ρ, a number in [0, 1], or (C,) with one per class.
        reliability: (C,) floating point in [0, 1], clamped to that range, for example from ``ClassAgreement``. NaN for
            a class that was not seen.
        low: reliability up to which the portion is 0, in [0, high).
        high: reliability from which on the portion is ρ, in (low, 1].
        power: exponent of the ramp between ``low`` and ``high``, above 0; larger values are stricter.
        unknown: factor of the portion for a class whose reliability is NaN, in [0, 1]. By default such a class is not
            labelled.

    Returns:
        (C,) float64 in [0, 1], on the device of ``reliability``. Pass it to ``ClassBalancedThreshold.compute``.

    Raises:
        TypeError: ``reliability`` is not a floating-point tensor, or another argument is not a number.
        ValueError: ``reliability`` is not (C,), ``portion`` has a different shape, or a number is out of range.

    Example:
        >>> import torch
        >>> reliability = torch.tensor([0.95, 0.7, 0.3, float("nan")])
        >>> reliable_portion(0.2, reliability, low=0.5, high=0.9)
        tensor([0.2000, 0.1000, 0.0000, 0.0000], dtype=torch.float64)
        >>> reliable_portion(1.0, reliability, low=0.5, high=0.9, power=2.0)  # all pixels of class 0
        tensor([1.0000, 0.2500, 0.0000, 0.0000], dtype=torch.float64)
    """
    _checks.check_vector(reliability, "reliability")
    _checks.check_real(low, "low", 0.0, 1.0)
    _checks.check_real(high, "high", float(low), 1.0, open_low=True)
    _checks.check_real(power, "power", 0.0, math.inf, open_low=True)
    _checks.check_real(unknown, "unknown", 0.0, 1.0)
    whole = per_class(portion, reliability)
    part = ((decimals(reliability) - low) / (high - low)).clamp(0.0, 1.0) ** power
    return whole * torch.where(part.isnan(), unknown, part)
