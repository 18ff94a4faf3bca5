"""Lines over rounds or steps, such as mIoU and losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from selftrain_seg.visualize import _figure
from selftrain_seg.visualize._figure import DARK, LIGHT, Ink
from selftrain_seg.visualize._host import Array, on_host

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curves"]

_LARGEST = 1e300  # larger values overflow with matplotlib's margins
_MANY = 60  # lines with more points also get a moving average


def curves(
    series: Mapping[str, Tensor | Sequence[Any]],
    *,
    x: Sequence[float] | None = None,
    xlabel: str = "round",
    ylabel: str = "",
) -> Figure:
    """Draw lines, such as mIoU by round or a loss by step.

    Lines of more than 60 points are drawn faint, with a moving average over a 30th of the points on top.

    Args:
        series: name -> (N,) values; NaN for missing values.
        x: (N,) positions of the values; None for 0 to N - 1.
        xlabel: label of the x axis.
        ylabel: label of the y axis.

    Returns:
        A ``matplotlib.figure.Figure``; if there are several lines, a legend shows their last values.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is no series, or a series is not (N,).

    Example:
        >>> from selftrain_seg.visualize import curves
        >>> figure = curves({"CBST": [70.0, 72.5, 73.9], "control": [70.0, 69.9, 71.3]}, ylabel="mIoU, %")
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['CBST: 73.9', 'control: 71.3']
    """
    return curves_figure(series, x, xlabel, ylabel, LIGHT)


def curves_figure(
    series: Mapping[str, Any],
    x: Sequence[float] | None,
    xlabel: str,
    ylabel: str,
    ink: Ink,
    *,
    from_zero: bool = False,
    most: float = np.inf,
    names: Sequence[str] | None = None,
    marked: float | None = None,
) -> Figure:
    """Draw ``curves`` in light or dark colours.

    Args:
        series: as in ``curves``.
        x: as in ``curves``.
        xlabel: as in ``curves``.
        ylabel: as in ``curves``.
        ink: colours of the figure.
        from_zero: start the y axis at 0, unless a value is negative.
        most: upper limit of the y axis; 100 means that the values are percentages.
        names: labels of the positions, instead of numbers.
        marked: position of the value to ring, if there is only one line.
    """
    if not series:
        raise ValueError("`series`: expected at least one")
    lines = {name: np.asarray(on_host(values), np.float64) for name, values in series.items()}
    number = len(next(iter(lines.values()))) if x is None else len(x)
    for name, values in lines.items():
        if values.shape != (number,):
            raise ValueError(f"`series`: expected ({number},), got {values.shape}, {name!r}")
    places = np.arange(number) if x is None else np.asarray(x, np.float64)
    several = len(lines) > 1
    figure = _figure.new_figure(4.3, 2.5 + (0.19 * -(-len(lines) // 2) if several else 0.0), ink, layout="constrained")
    axis = figure.add_subplot()
    _figure.style_axis(axis, ink, "")
    axis.grid(color=ink.faint, linewidth=0.6)
    axis.spines["left"].set_visible(False)
    for place, (name, values) in enumerate(lines.items()):
        colour = _line_colour(place, ink)
        there = np.abs(values) < _LARGEST  # NaN is not
        marker = "o" if number <= 20 else ""
        label = f"{name}: {_number(values[there][-1])}" if there.any() else f"{name}: –"
        if there.sum() > _MANY:
            axis.plot(places[there], values[there], color=colour, linewidth=0.7, alpha=0.35)
            values = np.where(there, _moving_average(values, there), np.nan)
        axis.plot(places[there], values[there], marker=marker, color=colour, linewidth=1.6, ms=4, label=label)
    if names is not None and number <= 12:
        axis.set_xticks(places, names)
    elif number <= 12 and np.all(places == np.round(places)):
        axis.set_xticks(places, [f"{place:.0f}" for place in places])
    if from_zero:
        _start_at_zero(axis, lines.values(), most)
        if number > 12 and axis.get_xlim()[0] > 0:
            axis.set_xlim(left=0)
    if most == 100 and not several and number <= 8:
        _write_values(axis, places, next(iter(lines.values())), marked, ink)
    axis.set_xlabel(xlabel, fontsize=9, color=ink.text)
    axis.set_ylabel(ylabel, fontsize=9, color=ink.text)
    axis.margins(x=0.03)
    if several:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False, labelcolor=ink.text)
    return _figure.plain_text(figure)


def _start_at_zero(axis: Axes, lines: Iterable[Array], most: float) -> None:
    """Start the y axis at 0, with room above the highest value; no change if a value is negative."""
    every = np.concatenate(list(lines))
    every = every[np.abs(every) < _LARGEST]
    if len(every) and every.min() >= 0:
        top = 1.15 * every.max() or 1.0
        axis.set_ylim(0, min(top, most) if most >= every.max() else top)


def _write_values(axis: Axes, places: Array, values: Array, marked: float | None, ink: Ink) -> None:
    for place, value in zip(places, values, strict=True):
        if np.abs(value) < _LARGEST:
            weight = "bold" if place == marked else "normal"
            steep = place == places[0] and len(values) > 1 and values[1] > 1.1 * value  # the line would cross it
            text = axis.annotate(
                f"{value:.1f}", (place, value), (8, -4) if steep else (0, 7), textcoords="offset points"
            )
            text.set(ha="left" if steep else "center", fontsize=8, color=ink.text, fontweight=weight)
            if place == marked:
                axis.plot([place], [value], "o", ms=10, mfc="none", mec=ink.last, mew=1.6)


def _line_colour(place: int, ink: Ink) -> str:
    colour = _figure.LINES[place % len(_figure.LINES)]
    return DARK.last if ink is DARK and colour == _figure.BLUE else colour


def _moving_average(values: Array, there: Array) -> Array:
    """Mean over a window of a 30th of the points, without missing values."""
    window = np.ones(2 * (len(values) // 60) + 1)
    total = np.convolve(np.where(there, values, 0.0), window, mode="same")
    return total / np.maximum(1, np.convolve(there.astype(np.float64), window, mode="same"))


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
