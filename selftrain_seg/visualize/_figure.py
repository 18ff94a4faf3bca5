"""Figures without pyplot, and their common parts: inks, grids of pictures, legends, log-odds.

Figures do not use pyplot's global state or backend, take no colours from rcParams and change none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from selftrain_seg.visualize._host import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, distinct for people with any colour vision, on white and on near-black.
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"
BRIGHT = "white"  # outlines, with a black border: visible on any background, and not the colour of a class
LINES = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY, "#8c8c8c")

_CELL, _TALLEST, _GAP, _HEADING, _LEGEND_ROW = 2.3, 2.6, 0.07, 0.26, 0.155  # inches
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


class Ink(NamedTuple):
    """Colours of a figure; those of rounds run from ``first`` to ``last``."""

    paper: str
    text: str
    faint: str
    first: str
    last: str


LIGHT = Ink("white", "#222222", "#d9d9d9", "#bcdcf0", BLUE)
DARK = Ink("none", "#d8dade", "#44484f", "#2d5f80", "#7cc4f2")


def new_figure(width: float, height: float, ink: Ink = LIGHT, **settings: Any) -> Figure:
    """Create an empty figure; sizes are in inches."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError('pictures need matplotlib: pip install "selftrain-seg[visualize]"') from error
    return Figure(figsize=(width, height), facecolor=ink.paper, **settings)


def style_axis(axis: Axes, ink: Ink, title: str) -> None:
    """Set the title, spines, ticks and grid of a chart."""
    axis.set_facecolor("none")
    axis.set_title(title, fontsize=9.5, color=ink.text, loc="left", pad=6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(ink.faint)
    axis.tick_params(labelsize=8, length=0, labelcolor=ink.text)
    axis.grid(axis="x", color=ink.faint, linewidth=0.6)
    axis.set_axisbelow(True)


def picture_grid(
    rows: int, headings: Sequence[str], ratio: float, *, legend: Sequence[tuple[str, Any]] = (), below: float = 0.0
) -> tuple[Figure, list[list[Axes]]]:
    """Create a row of axes for each image, with headings above and a legend of coloured patches below.

    Args:
        rows: number of rows.
        headings: headings of the columns.
        ratio: height / width of a picture.
        legend: (name, colour) of each entry.
        below: space under the pictures in addition to the legend, in inches.
    """
    width = min(_CELL, _TALLEST / ratio)
    height = width * ratio
    total = len(headings) * (width + _GAP) + _GAP
    longest = max((len(name) for name, _ in legend), default=0)
    columns = max(1, min(len(legend), int(total / (0.4 + 0.075 * longest))))
    footer = -(-len(legend) // columns) * _LEGEND_ROW + 0.14 if legend else _GAP
    tall = _HEADING + rows * (height + _GAP) + footer + below
    figure = new_figure(total, tall)
    axes = []
    for row in range(rows):
        bottom = tall - _HEADING - (row + 1) * height - row * _GAP
        line = []
        for column, heading in enumerate(headings):
            left = _GAP + column * (width + _GAP)
            axis = figure.add_axes((left / total, bottom / tall, width / total, height / tall))
            axis.set_axis_off()
            if row == 0:
                axis.set_title(heading, fontsize=9, color=LIGHT.text, pad=4)
            line.append(axis)
        axes.append(line)
    if legend:
        from matplotlib.patches import Patch

        handles = [Patch(facecolor=colour, edgecolor="#808080", linewidth=0.4) for _, colour in legend]
        figure.legend(
            handles,
            [name for name, _ in legend],
            loc="lower center",
            ncols=columns,
            fontsize=8,
            frameon=False,
            labelcolor=LIGHT.text,
            handlelength=1.2,
            columnspacing=1.2,
            labelspacing=0.35,
            borderaxespad=0.2,
        )
    return plain_text(figure), axes


def show(axis: Axes, picture: Array) -> None:
    """Show a picture (H, W, 3) without interpolation."""
    axis.imshow(picture, interpolation="nearest")
    axis.set_axis_off()


def outline(axis: Axes, region: Array) -> None:
    """Outline the pixels of a region (H, W) bool on a picture of its size."""
    if not region.any():
        return
    padded = np.pad(region.astype(np.float64), 1)  # closes outlines at the border of the image
    places = [np.arange(-1, size + 1) for size in region.shape]
    for colour, width in (("black", 2.2), (BRIGHT, 1.1)):
        axis.contour(places[1], places[0], padded, levels=[0.5], colors=[colour], linewidths=width)
    axis.set(xlim=(-0.5, region.shape[1] - 0.5), ylim=(region.shape[0] - 0.5, -0.5))  # contour changed them


def plain_text(figure: Figure) -> Figure:
    """Turn off formulas, so that dollar signs in names are printed."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_parse_math(False)
    return figure


def log_odds(probabilities: Array) -> Array:
    """Log-odds of probabilities: infinite for 0 and 1, NaN for NaN and values below 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        values: Array = np.log(probabilities) - np.log1p(-probabilities)
    return np.where(probabilities >= 1, np.inf, values)


def log_odds_ticks(low: float, high: float, most: int = 6) -> tuple[list[float], list[str]]:
    """Positions and labels of ticks between two log-odds: 0.1, 0.5, 0.9, 0.99, 0.999, 1−10⁻⁴ and so on."""
    far = [(float(np.log(10**k - 1.0)), "10⁻" + str(k).translate(_SUPERSCRIPTS)) for k in range(4, 16)]
    near = [(float(log_odds(np.array(float(p)))), p) for p in ("0.001", "0.01", "0.1", "0.5", "0.9", "0.99", "0.999")]
    marks = [*((-place, name) for place, name in reversed(far)), *near, *((place, f"1−{name}") for place, name in far)]
    inside = [(place, name) for place, name in marks if low <= place <= high]
    kept = inside[:: max(1, -(-len(inside) // most))]
    return [place for place, _ in kept], [name for _, name in kept]


def probability_text(value: float) -> str:
    """Format a probability with enough digits to differ from 1: 0.873, 0.9990, 1−2e−9."""
    if np.isnan(value):
        return "–"
    if value >= 1:
        return "1"
    if value < 0.9995:
        return f"{value:.3f}"
    mantissa, exponent = f"{1 - value:.0e}".split("e")
    return f"1−{mantissa}e−{-int(exponent)}"


def share_text(value: float) -> str:
    """Format a share as a percentage: 34.1 %, and without decimals from 1000 %."""
    if np.isnan(value):
        return "–"
    return f"{100 * value:.1f} %" if value < 9.995 else f"{100 * value:.0f} %"


def signed_text(points: float) -> str:
    """Format a difference with its sign: +3.6, −1.2, 0.0."""
    if np.isnan(points):
        return "–"
    return "0.0" if abs(points) < 0.05 else f"{points:+.1f}".replace("-", "−")


def caption(axis: Axes, text: str) -> None:
    """Write a line of small text inside a picture, at its lower edge."""
    box = {"facecolor": "black", "alpha": 0.6, "edgecolor": "none", "pad": 1.5}
    axis.text(0.012, 0.025, text, transform=axis.transAxes, fontsize=6.5, color="white", va="bottom", bbox=box)
