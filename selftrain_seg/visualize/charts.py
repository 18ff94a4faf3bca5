"""Charts over rounds and steps: thresholds, shares and precision of each class; losses and mIoU."""

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

__all__ = ["class_bars", "curves"]

_LARGEST = 1e300  # larger values overflow with matplotlib's margins
_MANY = 60  # lines with more points also get a moving average


def class_bars(
    classes: Sequence[str],
    *,
    thresholds: Tensor | Sequence[Any] | None = None,
    selected: Tensor | Sequence[Any] | None = None,
    precision: Tensor | Sequence[Any] | None = None,
    rounds: Sequence[int | str] | None = None,
) -> Figure:
    """Chart the thresholds, selected shares and precision of each class over rounds.

    Thresholds are dots on a log-odds scale, which separates 0.9999 from 1 - 1e-9; thresholds of 0 and 1 are at the ends
    of the scale. Shares are bars. Later rounds are darker, and the numbers on the right are those of the last round. A
    dash marks classes without a value (NaN). A bar that ends in an arrow exceeds 100 %: selectors that re-weight can
    assign a class to more pixels than were predicted as it.

    Args:
        classes: C names.
        thresholds: (R, C), or (C,) for one round: minimum confidence of each class.
        selected: (R, C) or (C,): selected pixels of each class / its predicted pixels, ``SelectionSummary.share``.
        precision: (R, C) or (C,): correct pixels / selected pixels, ``SelectionSummary.precision``.
        rounds: R names or numbers of the rounds; None for 1 to R.

    Returns:
        A ``matplotlib.figure.Figure`` with one panel for each given quantity.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: none of the three quantities is given; one is not (R, C) or is negative; a precision is above 1;
            ``rounds`` does not have R entries.

    Example:
        >>> import torch
        >>> from selftrain_seg.visualize import class_bars
        >>> figure = class_bars(["road", "rider"], selected=torch.tensor([[0.3, 0.3], [0.4, torch.nan]]))
        >>> [round(float(bar.get_width()), 2) for bar in figure.axes[0].patches]
        [0.3, 0.3, 0.4]
    """
    given = {"threshold": thresholds, "selected": selected, "precision": precision}
    return bars_figure(classes, {name: value for name, value in given.items() if value is not None}, rounds, LIGHT)


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


def bars_figure(
    classes: Sequence[str],
    panels: Mapping[str, Any],
    rounds: Sequence[int | str] | None,
    ink: Ink,
    *,
    panel: float = 2.6,
) -> Figure:
    """Draw ``class_bars`` in light or dark colours; ``panel`` is the width of a panel in inches."""
    if not panels:
        raise ValueError("`thresholds`, `selected`, `precision`: expected at least one of them")
    tables = {name: _table(name, values, len(classes)) for name, values in panels.items()}
    number = max(len(table) for table in tables.values())
    names = list(range(1, number + 1)) if rounds is None else list(rounds)
    for name, table in tables.items():
        if len(table) != len(names):
            raise ValueError(f"`{name}`: expected (R, C) = ({len(names)}, {len(classes)}), got {table.shape}")
    if not len(classes):
        raise ValueError("`classes`: expected at least one")
    longest = max(map(len, map(str, classes)))
    row = 0.2 if set(tables) <= {"threshold", "IoU"} else max(0.2, 0.07 * number + 0.06)
    label, top, bottom = 0.15 + 0.068 * longest, 0.32, 0.32
    height = top + bottom + row * len(classes) + (0.24 if number > 1 else 0.0)
    width = label + panel * len(tables)
    figure = _figure.new_figure(width, height, ink)
    shades = _shades(ink, number)
    for place, (name, table) in enumerate(tables.items()):
        box = (
            (label + panel * place) / width,
            1 - (top + row * len(classes)) / height,
            (panel - 0.72) / width,
            row * len(classes) / height,
        )
        axis = figure.add_axes(box)
        axis.set_ylim(len(classes) - 0.5, -0.5)
        axis.set_yticks(range(len(classes)), [str(name) for name in classes] if place == 0 else [])
        _style_axis(axis, ink, name)
        if name == "threshold":
            _threshold_dots(axis, table, shades, ink)
        elif name == "IoU":
            _iou_dots(axis, table, shades, ink)
        else:
            _bars(axis, table, shades, ink)
    if number > 1:
        _rounds_legend(figure, names, shades, ink)
    return _figure.plain_text(figure)


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
    _style_axis(axis, ink, "")
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


def _table(name: str, values: Any, num_classes: int) -> Array:
    """(R, C) float64."""
    table = np.asarray(on_host(values), np.float64)
    table = table[None] if table.ndim == 1 else table
    if table.ndim != 2 or table.shape[1] != num_classes or not len(table):
        raise ValueError(f"`{name}`: expected (R, {num_classes}) or ({num_classes},), got {table.shape}")
    if (table < 0).any() or (name == "precision" and (table > 1).any()):
        raise ValueError(f"`{name}`: expected shares, got {np.nanmin(table):.3g} to {np.nanmax(table):.3g}")
    return table


def _bars(axis: Axes, table: Array, shades: list[str], ink: Ink) -> None:
    thick = 0.78 / len(table)
    for number, (row, shade) in enumerate(zip(table, shades, strict=True)):
        places = np.arange(len(row)) - 0.39 + (number + 0.5) * thick
        there = np.isfinite(row)
        axis.barh(places[there], row[there], height=thick * 0.92, color=shade)
        over = there & (row > 1)
        axis.scatter(np.ones(over.sum()), places[over], s=14, marker=">", color=shade, clip_on=False, zorder=3)
    axis.set_xlim(0, 1)
    axis.set_xticks([0, 0.5, 1], ["0", "50", "100 %"])
    for place, value in enumerate(table[-1]):
        _annotate_row(axis, place, _figure.share_text(value), ink)


def _iou_dots(axis: Axes, table: Array, shades: list[str], ink: Ink) -> None:
    """Draw percentages as dots, and write the change from the first to the last."""
    for place in range(table.shape[1]):
        there = table[np.isfinite(table[:, place]), place]
        if len(there):
            axis.hlines(place, there.min(), there.max(), color=ink.faint, linewidth=1.5, zorder=1)
        change = table[-1, place] - table[0, place]
        _annotate_row(axis, place, _figure.signed_text(change), ink)
    for row, shade in zip(table, shades, strict=True):
        axis.scatter(row, np.arange(len(row)), s=22, color=shade, zorder=2, clip_on=False)
    axis.set_xlim(0, 100)
    axis.set_xticks([0, 50, 100], ["0", "50", "100 %"])


def _threshold_dots(axis: Axes, table: Array, shades: list[str], ink: Ink) -> None:
    odds = _figure.log_odds(table)
    finite = odds[np.isfinite(odds)]
    low, high = 0.0, float(_figure.log_odds(np.array(0.9)))  # 0.5 and 0.9 are always on the axis
    if len(finite):
        low, high = min(low, finite.min()), max(high, finite.max())
    room = max(0.5, 0.08 * (high - low))
    low, high = low - room, high + room
    for place in range(table.shape[1]):
        row = np.clip(odds[:, place], low, high)
        if np.isfinite(row).any():
            axis.hlines(place, np.nanmin(row), np.nanmax(row), color=ink.faint, linewidth=1.5, zorder=1)
        _annotate_row(axis, place, _figure.probability_text(table[-1, place]), ink)
    for row, shade in zip(odds, shades, strict=True):
        axis.scatter(np.clip(row, low, high), np.arange(len(row)), s=22, color=shade, zorder=2, clip_on=False)
    axis.set_xlim(low, high)
    places, names = _figure.log_odds_ticks(low, high, most=5)
    axis.set_xticks(places, names)


def _annotate_row(axis: Axes, place: float, text: str, ink: Ink) -> None:
    axis.annotate(
        text,
        (1, place),
        (6, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
        color=ink.text,
    )


def _style_axis(axis: Axes, ink: Ink, title: str) -> None:
    axis.set_facecolor("none")
    axis.set_title(title, fontsize=9.5, color=ink.text, loc="left", pad=6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(ink.faint)
    axis.tick_params(labelsize=8, length=0, labelcolor=ink.text)
    axis.grid(axis="x", color=ink.faint, linewidth=0.6)
    axis.set_axisbelow(True)


def _rounds_legend(figure: Figure, names: Sequence[int | str], shades: list[str], ink: Ink) -> None:
    from matplotlib.patches import Patch

    shown = sorted({0, *range(0, len(names), max(1, -(-len(names) // 6))), len(names) - 1})
    figure.legend(
        [Patch(color=shades[number]) for number in shown],
        [names[number] if isinstance(names[number], str) else f"round {names[number]}" for number in shown],
        loc="lower center",
        ncols=len(shown),
        fontsize=8,
        frameon=False,
        labelcolor=ink.text,
        handlelength=1.0,
        columnspacing=1.2,
    )


def _shades(ink: Ink, number: int) -> list[str]:
    """One colour per round, from pale to strong."""
    from matplotlib.colors import to_hex, to_rgb

    first, last = np.array(to_rgb(ink.first)), np.array(to_rgb(ink.last))
    return [to_hex(last + (first - last) * (number - 1 - step) / max(1, number - 1)) for step in range(number)]


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
