"""The same image, labelled by each selector."""

from __future__ import annotations

from collections.abc import Callable

import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pictures.scene import Scene, logits_of
from pictures.style import BLUE, ORANGE, WIDTH, coloured, show
from selftrain_seg import PseudoLabels
from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.selectors import (
    InstanceAdaptiveSelector,
    RunningConfidenceSelector,
    select_fixed,
    select_hard,
    select_reweighted,
)
from selftrain_seg.thresholds import ClassBalancedThreshold, GlobalThreshold
from selftrain_seg.visualize import overlay

IMAGE = 30
PORTION = 0.4
RIGHT_AND_WRONG = [[round(255 * part) for part in to_rgb(colour)] for colour in (BLUE, ORANGE)]


def draw(scene: Scene) -> Figure:
    """Draw the image, its true labels, and where each selector is right and wrong."""
    num_classes = SyntheticStreets.num_classes
    seen = logits_of(scene.net, scene.target.tensors[0])
    one, each = GlobalThreshold(num_classes, PORTION), ClassBalancedThreshold(num_classes, PORTION)
    adaptive, running = InstanceAdaptiveSelector(num_classes), RunningConfidenceSelector(num_classes)
    for part in seen.split(4):  # so that all have seen the target images, as in training
        for follower in (one.update, each.update, adaptive, running):
            follower(part)
    selectors: dict[str, Callable[[torch.Tensor], PseudoLabels]] = {
        "select_fixed, 0.968": select_fixed,
        "select_hard, one for all": lambda z: select_hard(z, one.compute()),
        "select_hard, class-balanced": lambda z: select_hard(z, each.compute()),
        "select_reweighted": lambda z: select_reweighted(z, each.compute()),
        "InstanceAdaptiveSelector": adaptive,
        "RunningConfidenceSelector": running,
    }
    images, truth = (tensor[IMAGE : IMAGE + 1] for tensor in scene.val.tensors)
    logits = logits_of(scene.net, images)
    figure, axes = plt.subplots(4, 2, figsize=(WIDTH, 8.0), layout="constrained")
    show(axes[0, 0], images[0], "image")
    show(axes[0, 1], coloured(truth[0]), "true labels")
    for axis, (name, select) in zip(axes[1:].flat, selectors.items(), strict=True):
        labels = select(logits).labels
        show(axis, _marked(images, labels, truth.long()), f"{name}\n{_said(labels, truth.long())}")
    handles = [Patch(color=BLUE, label="selected, right"), Patch(color=ORANGE, label="selected, wrong")]
    handles.append(Patch(color="#a0a0a0", label="not selected"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _marked(images: torch.Tensor, labels: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    marks = torch.where(labels == 255, 255, (labels != truth).long())
    return overlay(images, marks.where(truth != 255, 255), RIGHT_AND_WRONG, opacity=0.75)[0]


def _said(labels: torch.Tensor, truth: torch.Tensor) -> str:
    known = (labels != 255) & (truth != 255)
    right = (labels == truth)[known].float().mean()
    classes = len(labels[known].unique())
    return f"{100 * known.sum() / (truth != 255).sum():.0f} %, {100 * right:.0f} % right, {classes} classes"
