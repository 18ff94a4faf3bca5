"""Choice of the mixing weight of the target statistics, by a score without target labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from selftrain_seg import _checks
from selftrain_seg.batchnorm.statistics import get_statistics, mix_statistics, set_statistics

__all__ = ["AlphaChoice", "choose_alpha"]


class AlphaChoice(NamedTuple):
    """The result of ``choose_alpha``.

    Attributes:
        alpha: the chosen weight of the target statistics.
        scores: score of each alpha, in the order in which they were tried.
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
    """Score several mixtures of source and target statistics and choose the best one.

    The choice is only as good as the score. Use ``restyled_confusion(...).miou``, which needs no target labels. Where
    domains differ in more than colours, it chooses an alpha that is too small. Do not use soft neighbourhood density,
    which chose the worst alpha on the networks tried. Without source images, use the default of ``mix_statistics`` for
    a pre-trained network, and alpha 1 for a network trained from scratch.

    Args:
        net: the network to score with each mixture. Its own statistics are restored at the end, also after an error.
        source: source statistics, from ``get_statistics``.
        target: target statistics, from ``estimate_statistics``.
        score: maps the network to a number, higher is better, equal on all ranks. An alpha with NaN is never chosen.
        alphas: the weights to try, each in [0, 1].
        margin: the smallest alpha whose score is within ``margin`` of the best is chosen. A larger margin is safer,
            since it stays nearer to the source statistics.
        variance: as in ``mix_statistics``.

    Returns:
        ``AlphaChoice(alpha, scores)``. Get the statistics with ``mix_statistics(source, target, choice.alpha)``.

    Raises:
        TypeError: an alpha or ``margin`` is not a number.
        ValueError: ``alphas`` is empty, an alpha is outside [0, 1], ``margin`` is below 0, the statistics do not match
            the network, or every score is NaN.

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
        raise ValueError("`score`: expected a number for at least one alpha, got NaN for all")
    best = max(good.values())
    return AlphaChoice(min(alpha for alpha, value in good.items() if value >= best - margin), scores)
