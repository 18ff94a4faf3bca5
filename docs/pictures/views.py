"""Two images, their weak and strong views, and the labels of the same views."""

from __future__ import annotations

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pictures.scene import SIZE, Scene
from pictures.style import ORANGE, WIDTH, coloured, show
from selftrain_seg.views import WeakStrongViews, replay

SHOWN = [0, 5]


def draw(scene: Scene) -> Figure:
    """Draw a column for each image; the rectangle is what the views show of it."""
    images, truth = (tensor[SHOWN] for tensor in scene.source.tensors)
    views = WeakStrongViews((128, 192), scale=(0.8, 1.6))
    weak, strong, parameters = views(images / 255, generator=torch.Generator().manual_seed(2))
    labels = replay(truth.long(), parameters).masked_fill(parameters.cut_out, 255)
    figure, axes = plt.subplots(4, 2, figsize=(WIDTH, 8.4), height_ratios=[3, 4, 4, 4], layout="constrained")
    for column in range(2):
        show(axes[0, column], images[column], "image")
        top, left = parameters.corner[column].tolist()
        high, wide = (full / scaled for full, scaled in zip(SIZE, parameters.scaled[column].tolist(), strict=True))
        box = Rectangle((left * wide, top * high), 192 * wide, 128 * high, fill=False, edgecolor=ORANGE, linewidth=3)
        axes[0, column].add_patch(box)
        mirrored = ", mirrored" if parameters.flipped[column] else ""
        show(axes[1, column], weak[column].clamp(0, 1), f"weak{mirrored}")
        show(axes[2, column], strong[column].clamp(0, 1), "strong")
        show(axes[3, column], coloured(labels[column]), "replay(labels, parameters)")
    return figure
