"""One threshold for all classes against one for each."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from pictures.scene import Scene, logits_of
from pictures.style import BLUE, ORANGE, WIDTH
from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.selectors import SelectionStatistics, select_hard
from selftrain_seg.thresholds import ClassBalancedThreshold, GlobalThreshold

PORTION = 0.3


def draw(scene: Scene) -> Figure:
    """Draw the thresholds on the left, and what they select of each class on the right."""
    images, truth = scene.target.tensors
    logits = logits_of(scene.net, images)
    places = np.arange(SyntheticStreets.num_classes)
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 5.6), sharey=True, layout="constrained")
    for estimator, colour, name, shift in (
        (GlobalThreshold, ORANGE, "one for all", -0.2),
        (ClassBalancedThreshold, BLUE, "class-balanced", 0.2),
    ):
        kc = estimator(SyntheticStreets.num_classes, PORTION)
        kc.update(logits)
        thresholds = kc.compute()
        statistics = SelectionStatistics(SyntheticStreets.num_classes)
        statistics.update(select_hard(logits, thresholds), truth.long())
        left.plot(torch.logit(thresholds), places, "o", color=colour, markersize=7)
        right.barh(places + shift, 100 * statistics.compute().share, 0.4, color=colour, label=name)
    left.set_yticks(places, SyntheticStreets.classes)
    left.set_xticks(torch.logit(torch.tensor([0.5, 0.9, 0.99, 0.999])), ["0.5", "0.9", "0.99", "0.999"])
    left.set_xlim(-2, 8)
    left.grid(axis="x", alpha=0.3)
    left.set_xlabel("threshold kc")
    left.invert_yaxis()
    right.axvline(100 * PORTION, color="black", linewidth=1, linestyle=":")
    right.set_xlabel("% of the class selected")
    figure.legend(loc="outside upper center", ncols=2)
    return figure
