"""Running averages over batches and thresholds from them; one launch on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg.ops._library import operator

SEEN = 1e-8  # minimum mean probability of a class that has been seen


def follow(running: Tensor, sums: Tensor, number: Tensor, momentum: float, *, variance: bool = False) -> None:
    """Update ``running ← momentum · running + (1 - momentum) · sums / number``, (n,), in place, unless ``number`` is 0.

    With ``variance`` the sums are Σ m² and Σ m, and ``running`` is the variance and the mean.
    """
    _follow(running, sums, number, momentum, variance)


def discount(
    peaks: Tensor,
    running: Tensor,
    seen: Tensor,
    sums: Tensor | None,
    *,
    upper: float,
    lower: float,
    beta: float,
    momentum: float,
) -> Tensor:
    """Thresholds of SAC and DT-ST, (B, C) float32, ``max(lower, upper · peak · (1 - exp(-running / beta)))``.

    First ``running`` (C,) float64 is moved towards the mean probability, given Σ p_c and the number of pixels; a class
    that is not yet ``seen`` (C,) bool starts at the mean. Both are updated in place.
    """
    bars: Tensor = _discount(peaks, running, seen, sums, upper, lower, beta, momentum)
    return bars


def _follow_plain(running: Tensor, sums: Tensor, number: Tensor, momentum: float, variance: bool) -> None:
    means = sums / number.clamp(min=1.0)
    if variance:
        means[0] = (means[0] - means[1] ** 2).clamp(min=0.0)
    moved = momentum * running + (1.0 - momentum) * means
    running.copy_(torch.where(number > 0, moved, running))


def _discount_plain(
    peaks: Tensor,
    running: Tensor,
    seen: Tensor,
    sums: Tensor | None,
    upper: float,
    lower: float,
    beta: float,
    momentum: float,
) -> Tensor:
    if sums is not None:
        mean = sums[:-1] / sums[-1].clamp(min=1)
        first = ~seen & (mean > SEEN)
        moved = momentum * torch.where(first, mean, running) + (1.0 - momentum) * mean
        running.copy_(torch.where(sums[-1] > 0, moved, running))
        seen.logical_or_(first)
    known = -torch.expm1(-running / beta)
    return (upper * peaks * known.float()).clamp(min=lower)


_follow = operator(
    "follow(Tensor(a!) running, Tensor sums, Tensor number, float momentum, bool variance) -> ()",
    _follow_plain,
    lambda *_: None,
    kernel="launch_state",
)
_discount = operator(
    "discount(Tensor peaks, Tensor(a!) running, Tensor(b!) seen, Tensor? sums, float upper, float lower, float beta,"
    " float momentum) -> Tensor",
    _discount_plain,
    lambda peaks, *_: torch.empty_like(peaks),
    kernel="launch_state",
)
