"""How all pictures look: legible at phone width, on white, in colours that colour-blind people can tell apart."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.visualize import colorize

matplotlib.use("Agg")
matplotlib.rcParams.update(
    {
        "font.size": 12,
        "axes.titlesize": 12,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "lines.linewidth": 2,
    }
)

# Okabe and Ito's colours.
BLUE, ORANGE, GREEN, RED, PINK, SKY, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999"
WIDTH = 6.4  # inches; at phone width a point of text is then about 0.8 pixels


def show(axis: Axes, picture: Tensor, title: str = "") -> None:
    """Show an image (3, H, W) without axes."""
    axis.imshow(picture.permute(1, 2, 0), interpolation="nearest")
    axis.set_title(title)
    axis.set_axis_off()


def coloured(labels: Tensor) -> Tensor:
    """Turn labels (H, W) of the benchmark into colours (3, H, W), unlabelled pixels white."""
    return colorize(labels.long()[None], SyntheticStreets.palette, ignore_color=(255, 255, 255))[0]


def save(figure: Figure, path: Path) -> None:
    """Write a PNG with a palette, a third of the bytes, and close the figure."""
    drawn = BytesIO()
    figure.savefig(drawn, dpi=150, bbox_inches="tight", pad_inches=0.12)
    small = Image.open(drawn).convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=2)
    temporary = path.with_suffix(".tmp.png")
    small.save(temporary, optimize=True)
    temporary.replace(path)
    plt.close(figure)
