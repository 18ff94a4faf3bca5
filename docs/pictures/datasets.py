"""Both domains of the synthetic benchmark."""

from __future__ import annotations

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pictures.scene import Scene
from pictures.style import WIDTH, coloured, show
from selftrain_seg.datasets import SyntheticStreets

ROWS, SIZE = 2, (192, 384)


def draw(_: Scene) -> Figure:
    """Draw images above their labels, the source on the left and the target on the right."""
    domains = [SyntheticStreets(domain, "train", size=SIZE) for domain in ("source", "target")]
    figure, axes = plt.subplots(2 * ROWS, 2, figsize=(WIDTH, 8), layout="constrained")
    for column, streets in zip(axes.T, domains, strict=True):
        for row in range(ROWS):
            image, labels = streets[row]
            show(column[2 * row], image)
            show(column[2 * row + 1], coloured(labels))
        column[0].set_title(streets.domain)
    pairs = zip(SyntheticStreets.classes, SyntheticStreets.palette, strict=True)
    handles = [Patch(color=[part / 255 for part in colour], label=name) for name, colour in pairs]
    handles.append(Patch(facecolor="white", edgecolor="black", label="ignored"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=11)
    return figure
