"""A source image in the style of two target images."""

from __future__ import annotations

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from pictures.scene import Scene
from pictures.style import WIDTH, show
from selftrain_seg.restyle import match_moments, swap_amplitudes

SOURCE, STYLES = 0, [3, 11]


def draw(scene: Scene) -> Figure:
    """Draw a column for each style; the first row has the source image twice."""
    image, styles = scene.source.tensors[0][[SOURCE, SOURCE]] / 255, scene.target.tensors[0][STYLES] / 255
    rows = {
        "source": image,
        "target": styles,
        "match_moments": match_moments(image, styles, clip=True),
        "swap_amplitudes, β = 0.02": swap_amplitudes(image, styles, beta=0.02, clip=True),
    }
    figure, axes = plt.subplots(len(rows), 2, figsize=(WIDTH, 7.4), layout="constrained")
    for row, (title, pictures) in enumerate(rows.items()):
        for column in range(2):
            show(axes[row, column], pictures[column], title)
    return figure
