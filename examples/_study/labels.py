"""Ways to label target images, and statistics of the labels."""

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
_FLOOR = 0.9  # lowest threshold of a class with "floor"
_RELIABLE, _USABLE = 0.9, 0.6  # precision of a class on restyled source images; see "trusted"


def describe(labels: Tensor, logits: Tensor, truth: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the share and precision of labels, and the share of the gradient that comes from wrong labels.

    The gradient of a pixel is measured as 1 - p of its label, which is 0 if the network is already certain.
    """
    soft = labels.ndim == 4
    hard = torch.where(labels.sum(dim=1) > 0, labels.argmax(dim=1), IGNORE_INDEX) if soft else labels
    chosen = hard != IGNORE_INDEX
    probability = logits.softmax(dim=1).gather(1, hard.where(chosen, 0)[:, None])[:, 0]
    pull = (1 - probability) * chosen
    known = chosen & (truth != IGNORE_INDEX)
    wrong = known & (hard != truth)
    about: dict[str, Any] = {
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
        about["by class"][name] = {
            "share of labels": float(mine.sum() / chosen.sum().clamp(min=1)),
            "share of gradient": float((pull * mine).sum() / pull.sum().clamp(min=1e-9)),
            "precision": float((mine & (truth == number)).sum() / (mine & known).sum().clamp(min=1)),
        }
    return about


def near_border(labels: Tensor, width: int = _BORDER) -> Tensor:
    """Return (N, H, W) bool: whether a pixel of another class is at most ``width`` pixels away."""
    floats, side = labels[:, None].float(), 2 * width + 1
    return (F.max_pool2d(floats, side, 1, width) + F.max_pool2d(-floats, side, 1, width))[:, 0] > 0


Predictions = tuple[Tensor, Tensor]  # logits (N, C, H, W), precision of each class (C,)


def predict(net: nn.Module, world: World) -> Predictions:
    """Return the logits of the target images, and the precision of each class on restyled source images."""
    trust = score(net, world.trust, len(world.classes)).precision.nan_to_num(0.0)
    return logits_of(net, world.target.images), trust


def make_labels(method: str, portion: float, predictions: Predictions, world: World) -> tuple[Tensor, dict[str, Any]]:
    """Label the target images; return the labels and their statistics."""
    (logits, trust), truth, count = predictions, world.target.labels, len(world.classes)
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
        """Use the precision of each class on restyled source images as its portion."""
        return select_hard(logits, balanced.compute(trust.clamp(0.05, 1.0))).labels

    ignored = torch.full_like(argmax, IGNORE_INDEX)
    methods: dict[str, Callable[[], Tensor]] = {
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
    labels = methods[method]()
    about = describe(labels, logits, truth, world.classes)
    about["thresholds"] = dict(zip(world.classes, thresholds.tolist(), strict=True))
    about["trust"] = dict(zip(world.classes, trust.tolist(), strict=True))
    return labels, about
