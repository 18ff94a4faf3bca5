"""Ways to label target images, and what the labels are like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _study.measuring import logits_of, score
from _study.world import World
from selftrain_seg import IGNORE_INDEX
from selftrain_seg.selectors import select_hard, select_reweighted, select_soft
from selftrain_seg.thresholds import ClassBalancedThreshold, GlobalThreshold

_BORDER = 2  # pixels on each side of a border between predicted classes
_FLOOR = 0.9  # least threshold of a class, where there is one
_RELIABLE, _USABLE = 0.9, 0.6  # precision of a class on restyled source images


def describe(labels: Tensor, logits: Tensor, truth: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    """What labels are like: their share and precision, and how much of the gradient comes from wrong ones.

    A pixel's gradient is counted as 1 - p of its label: what is taught with certainty already teaches nothing.
    """
    soft = labels.ndim == 4
    hard = torch.where(labels.sum(dim=1) > 0, labels.argmax(dim=1), IGNORE_INDEX) if soft else labels
    chosen = hard != IGNORE_INDEX
    probability = logits.softmax(dim=1).gather(1, hard.where(chosen, 0)[:, None])[:, 0]
    pull = (1 - probability) * chosen
    known = chosen & (truth != IGNORE_INDEX)
    wrong = known & (hard != truth)
    made: dict[str, Any] = {
        "share": float(chosen.float().mean()),
        "precision": float(1 - wrong.sum() / known.sum().clamp(min=1)),
        "gradient from wrong labels": float((pull * wrong).sum() / (pull * known).sum().clamp(min=1e-9)),
        "not the most probable class": float(
            (chosen & (hard != logits.argmax(dim=1))).sum() / chosen.sum().clamp(min=1)
        ),
        "on void": float((chosen & (truth == IGNORE_INDEX)).sum() / chosen.sum().clamp(min=1)),
        "by class": {},
    }
    for number, name in enumerate(classes):
        mine = hard == number
        made["by class"][name] = {
            "share of labels": float(mine.sum() / chosen.sum().clamp(min=1)),
            "share of gradient": float((pull * mine).sum() / pull.sum().clamp(min=1e-9)),
            "precision": float((mine & (truth == number)).sum() / (mine & known).sum().clamp(min=1)),
        }
    return made


def near_border(labels: Tensor, width: int = _BORDER) -> Tensor:
    """(N, H, W) bool: whether another class is less than ``width`` pixels away."""
    floats, side = labels[:, None].float(), 2 * width + 1
    return (F.max_pool2d(floats, side, 1, width) + F.max_pool2d(-floats, side, 1, width))[:, 0] > 0


Known = tuple[Tensor, Tensor]


def know(net: nn.Module, world: World) -> Known:
    """What labels are made from: logits of the target images, and how far each class can be trusted."""
    trust = score(net, world.trust, len(world.classes)).precision.nan_to_num(0.0)
    return logits_of(net, world.target.images), trust


def make_labels(how: str, portion: float, known: Known, world: World) -> tuple[Tensor, dict[str, Any]]:
    """Label the target images, and describe the labels."""
    (logits, trust), truth, count = known, world.target.labels, len(world.classes)
    balanced = ClassBalancedThreshold(count, portion)
    balanced.update(logits)
    thresholds = balanced.compute()
    argmax = logits.argmax(dim=1)
    reweighted = select_reweighted(logits, thresholds).labels

    def pooled() -> Tensor:
        estimator = GlobalThreshold(count, portion)
        estimator.update(logits)
        return select_hard(logits, estimator.compute()).labels

    def trusted() -> Tensor:
        portions = torch.where(trust >= _RELIABLE, 1.0, torch.where(trust >= _USABLE, portion, 0.05))
        return select_hard(logits, balanced.compute(portions)).labels

    def as_trusted() -> Tensor:
        """Like ``trusted``, in proportion: a class is labelled as far as it was right on restyled source images."""
        return select_hard(logits, balanced.compute(trust.clamp(0.05, 1.0))).labels

    ignored = torch.full_like(argmax, IGNORE_INDEX)
    ways: dict[str, Callable[[], Tensor]] = {
        "none": lambda: ignored,
        "re-weighted": lambda: reweighted,
        "hard": lambda: select_hard(logits, thresholds).labels,
        "global": pooled,
        "floor": lambda: select_hard(logits, thresholds.clamp(min=_FLOOR)).labels,
        "all": lambda: argmax,
        "all interiors": lambda: argmax.where(~near_border(argmax), IGNORE_INDEX),
        "all borders": lambda: argmax.where(near_border(argmax), IGNORE_INDEX),
        "re-weighted, trusted classes": lambda: reweighted.where(
            (reweighted != IGNORE_INDEX) & (trust >= _USABLE)[reweighted.clamp(max=count - 1)], IGNORE_INDEX
        ),
        "soft": lambda: select_soft(logits, thresholds, alpha=0.25).soft,
        "probabilities": lambda: logits.softmax(dim=1),
        "trusted": trusted,
        "as trusted": as_trusted,
        "right ones of re-weighted": lambda: reweighted.where(reweighted == truth, IGNORE_INDEX),
        "truth where re-weighted": lambda: truth.where(reweighted != IGNORE_INDEX, IGNORE_INDEX),
        "right ones of all": lambda: argmax.where(argmax == truth, IGNORE_INDEX),
        "truth": lambda: truth,
    }
    labels = ways[how]()
    about = describe(labels, logits, truth, world.classes)
    about["thresholds"] = dict(zip(world.classes, thresholds.tolist(), strict=True))
    about["trust"] = dict(zip(world.classes, trust.tolist(), strict=True))
    return labels, about
