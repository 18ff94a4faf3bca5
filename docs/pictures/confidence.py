"""Confidences of a sharp network pile up at 1; log-odds do not."""

from __future__ import annotations

import math

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from pictures.scene import Scene, logits_of
from pictures.style import BLUE, GREEN, ORANGE, RED, WIDTH
from selftrain_seg.confidence import log_odds, top_confidence
from selftrain_seg.datasets import SyntheticStreets

# A network trained for a minute is never that sure; one trained for days is. Its logits are multiplied by this.
SHARPNESS = 3.0
SHOWN = {"road": BLUE, "building": ORANGE, "car": GREEN, "bicycle": RED}
LAST = 17.3  # log-odds from which float32 rounds m to 1


def draw(scene: Scene) -> Figure:
    """Draw histograms by class: of m above, of the log-odds below."""
    top = top_confidence(SHARPNESS * logits_of(scene.net, scene.val.tensors[0]))
    confidence, odds = top.log_confidence.exp(), log_odds(top.log_confidence)
    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 6.6), layout="constrained")
    for name, colour in SHOWN.items():
        mine = top.labels == SyntheticStreets.classes.index(name)
        for axis, values, low, high in ((axes[0], confidence, 0.0, 1.0), (axes[1], odds, -3.0, 27.0)):
            share = torch.histc(values[mine], bins=50, min=low, max=high) / mine.sum()
            edges = torch.linspace(low, high, 51)
            axis.stairs(100 * share, edges, color=colour, label=name, linewidth=2)
    ones = float((confidence == 1).float().mean())
    axes[0].set_title(f"confidence m: {100 * ones:.0f} % of all pixels are exactly 1.0")
    axes[0].set_xlabel("m")
    axes[1].set_title("log-odds o: every pixel has its place")
    axes[1].set_xlabel("o, and the m it stands for")
    axes[1].axvspan(LAST, 27, color="#eeeeee", zorder=0)
    axes[1].text(27, 7.8, "float32 has m = 1.0", va="top", ha="right")
    axes[1].set(xlim=(-3, 27), ylim=(0, 8))
    axes[1].set_xticks(
        [math.log(10**k - 1) if k else 0.0 for k in (0, 2, 4, 6, 8, 10)],
        ["0\n0.5", "4.6\n0.99", "9.2\n$1-10^{-4}$", "13.8\n$1-10^{-6}$", "18.4\n$1-10^{-8}$", "23.0\n$1-10^{-10}$"],
    )
    for axis in axes:
        axis.set_ylabel("% of the class")
    axes[0].legend(loc="upper left")
    return figure
