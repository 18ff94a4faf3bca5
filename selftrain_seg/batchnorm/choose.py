"""How much of the target's statistics to take, from a score that needs no target label."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from selftrain_seg import _checks
from selftrain_seg.batchnorm.statistics import get_statistics, mix_statistics, set_statistics

__all__ = ["AlphaChoice", "choose_alpha"]


class AlphaChoice(NamedTuple):
    """What ``choose_alpha`` returns.

    Attributes:
        alpha: the chosen share of the target's statistics.
        scores: of each alpha, in the order in which they were tried.
    """

    alpha: float
    scores: dict[float, float]


def choose_alpha(
    net: nn.Module,
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    score: Callable[[nn.Module], float | Tensor],
    *,
    alphas: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0),
    margin: float = 0.0,
    variance: str = "interpolated",
) -> AlphaChoice:
    """Try several mixtures of source and target statistics, and choose the one that scores best.

    The score decides how good the choice is. ``restyled_confusion(...).miou`` needs no target label. It was better than
    either end on the networks tried, but not always right: where domains differ in more than colours it stays too near
    to the source. Soft neighbourhood density chose the worst each time. Without source images take
    ``mix_statistics``' default for a pre-trained network, and the target's statistics for one trained from scratch.

    Args:
        net: has each mixture in turn and comes back with the statistics that it had, whatever happens.
        source: statistics of the source, from ``get_statistics``.
        target: statistics of the target, from ``estimate_statistics``.
        score: a number for the network, the higher, the better; the same on all ranks. NaN is never chosen.
        alphas: the shares to try, each in [0, 1].
        margin: the smallest alpha whose score is within ``margin`` of the best is chosen, so 0 takes the best, and of
            equal ones the smallest. Statistics nearer to the source's are safer.
        variance: as for ``mix_statistics``.

    Returns:
        The choice and all scores. ``mix_statistics(source, target, choice.alpha)`` makes the statistics again.

    Raises:
        TypeError: an alpha or ``margin`` is no number.
        ValueError: ``alphas`` is empty, one is outside [0, 1] or ``margin`` below 0; statistics do not fit the network;
            every score is NaN.

    Example:
        >>> import torch
        >>> norm = torch.nn.BatchNorm2d(1)
        >>> source = get_statistics(norm)
        >>> target = {"running_mean": torch.ones(1), "running_var": torch.ones(1)}
        >>> choose_alpha(norm, source, target, lambda net: -(net.running_mean - 0.4).abs(), alphas=(0.0, 0.5, 1.0))
        AlphaChoice(alpha=0.5, scores={0.0: -0.4..., 0.5: -0.09..., 1.0: -0.6...})
    """
    if not alphas:
        raise ValueError("`alphas`: expected at least one, got none")
    for alpha in alphas:
        _checks.check_real(alpha, "alphas", 0.0, 1.0)
    _checks.check_real(margin, "margin", 0.0, math.inf)
    before, scores = get_statistics(net), {}
    try:
        for alpha in alphas:
            set_statistics(net, mix_statistics(source, target, alpha, variance=variance))
            scores[float(alpha)] = float(score(net))
    finally:
        set_statistics(net, before)
    good = {alpha: value for alpha, value in scores.items() if not math.isnan(value)}
    if not good:
        raise ValueError("`score`: expected a number for one alpha at least, got NaN for all")
    best = max(good.values())
    return AlphaChoice(min(alpha for alpha, value in good.items() if value >= best - margin), scores)
