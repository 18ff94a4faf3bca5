"""Charts of the classes over rounds: thresholds, selected shares, precision and IoU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from selftrain_seg.visualize import _figure
from selftrain_seg.visualize._figure import LIGHT, Ink
from selftrain_seg.visualize._host import Array, on_host

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["class_bars"]


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
        _figure.style_axis(axis, ink, name)
        if name == "threshold":
            _threshold_dots(axis, table, shades, ink)
        elif name == "IoU":
            _iou_dots(axis, table, shades, ink)
        else:
            _bars(axis, table, shades, ink)
    if number > 1:
        _rounds_legend(figure, names, shades, ink)
    return _figure.plain_text(figure)


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
