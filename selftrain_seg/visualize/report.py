"""One HTML file that shows a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selftrain_seg.visualize import _html
from selftrain_seg.visualize._figure import DARK, LIGHT, Ink, new_figure, probability_text, share_text
from selftrain_seg.visualize._host import Array
from selftrain_seg.visualize._html import Element, node
from selftrain_seg.visualize._run_folder import Round, RunFolder, read_run
from selftrain_seg.visualize.charts import bars_figure, curves_figure
from selftrain_seg.visualize.records import png, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["report"]

_DPI = 192  # two pixels for one of the page
_MOST_ROUNDS = 6  # in a chart of bars
_PANELS = {"thresholds": "threshold", "selected": "selected", "precision": "precision"}
_EXPLAINED = {
    "thresholds": "Confidence that a pixel must reach, in log-odds.",
    "selected": "Pixels labelled so, of those predicted so.",
    "precision": "Right pixels, of those labelled so.",
}


def report(run_dir: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Show a run in one HTML file, which needs no network, no script and no other file.

    Everything is read from plain files in ``run_dir``, and whatever is not there is left out, so a run that was
    killed has a report, too:

    - ``arguments.json``: an object, the run's settings.
    - ``result.json``: an object. Numbers and words in it are shown as they are, ``iou``, an object class -> IoU in
      percent, as a table; an object with an ``iou`` of its own is a column of that table.
    - ``rounds/round-0001.json``, ``rounds/{group}/round-0001.json``: :func:`record_round` writes them.
    - ``pseudo-labels/round-0000/manifest.json``: a ``PseudoLabelStore``, whose round 0 is the run's round 1. Of
      ``pseudo-labels-{group}`` the rounds are those of the group.
    - ``steps.jsonl``: :func:`record_step` writes it.
    - ``pictures/*.png``: :func:`record_picture` writes them.

    The same files give the same report, byte for byte, with the same version of matplotlib.

    Args:
        run_dir: folder of the run.
        out: file to write, complete or not at all; None for ``report.html`` in the folder.

    Returns:
        The file.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: ``run_dir`` is not a folder.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from selftrain_seg.visualize import record_round, report
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for round, iou in enumerate([[60.0, 80.0], [70.0, 82.0]]):
        ...         file = record_round(folder, round, classes=["road", "sky"], iou=torch.tensor(iou))
        ...     page = report(folder)
        ...     page.name, "76.0" in page.read_text()
        ('report.html', True)
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise ValueError(f"`run_dir`: expected a folder, got {str(folder)!r}")
    new_figure(1, 1)  # or say that matplotlib is missing, before anything is read
    run = read_run(folder)
    name = folder.resolve().name or "run"
    path = folder / "report.html" if out is None else Path(out)
    sections = [
        _result(run),
        *(_rounds(group, rounds) for group, rounds in sorted(run.groups.items())),
        _training(run),
        _pictures(run),
        _arguments(run),
    ]
    head = [node("h1", name), node("p", "Report of a self-training run.", class_="soft"), _facts(run.result)]
    if not any(section is not None for section in sections):
        head.append(node("p", "Nothing was recorded here yet."))
    if run.damaged:
        head.append(node("p", "Not readable, and left out: " + ", ".join(run.damaged)))
    write(path, _html.page(f"{name}: report", *head, *sections))
    return path


def _facts(result: Mapping[str, Any]) -> Element | None:
    pairs = [(name, value) for name, value in result.items() if isinstance(value, (str, int, float))]
    return node("dl", *_pairs(pairs), class_="facts") if pairs else None


def _arguments(run: RunFolder) -> Element | None:
    if not run.arguments:
        return None
    return node("section", node("h2", "Arguments"), node("dl", *_pairs(run.arguments.items()), class_="pairs"))


def _pairs(pairs: Any) -> list[Element]:
    return [node("div", node("dt", _words(name)), node("dd", _text(value))) for name, value in pairs]


def _result(run: RunFolder) -> Element | None:
    """IoU of every class: by round, and by network where ``result.json`` has several."""
    columns = _iou_columns(run)
    parts: list[Element | None] = []
    series = {}
    for group, rounds in sorted(run.groups.items()):
        with_iou = {number: made for number, made in sorted(rounds.items()) if "iou" in made.values}
        if len(with_iou) > 1:
            series[group or "mIoU"] = {number: _mean(made.values["iou"]) for number, made in with_iou.items()}
    if series:
        places = sorted({number for line in series.values() for number in line})
        lines = {name: [line.get(place, np.nan) for place in places] for name, line in series.items()}
        parts.append(_chart("mIoU by round", False, lambda ink: curves_figure(lines, places, "round", "mIoU, %", ink)))
    if columns:
        parts.append(_iou_table(columns, run.result))
    return node("section", node("h2", "Result"), node("div", *parts, class_="charts")) if parts else None


def _iou_columns(run: RunFolder) -> dict[str, dict[str, float]]:
    """Heading -> class -> IoU: of the networks in ``result.json`` if it has several, else after each round."""
    named = {"result": run.result, **run.result}
    results = {_words(name): _ious(value) for name, value in named.items() if _has_iou(value)}
    rounds = {}
    for group, those in sorted(run.groups.items()):
        for number, made in _some([(number, made) for number, made in sorted(those.items()) if "iou" in made.values]):
            heading = f"round {number}" if number else "before"
            values = dict(zip(made.classes, map(float, made.values["iou"]), strict=True))
            rounds[f"{group}, {heading}" if group else heading] = values
    return results if len(results) > 1 or not rounds else rounds


def _has_iou(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("iou"), Mapping)


def _ious(value: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): _float(one) for name, one in value["iou"].items()}


def _iou_table(columns: Mapping[str, Mapping[str, float]], result: Mapping[str, Any]) -> Element:
    """Means above, classes below."""
    others = {_words(name): value for name, value in result.items() if _has_iou(value)}
    means = list(dict.fromkeys(name for value in others.values() for name in value if _is_number(value[name])))
    rows: list[list[str | Element]] = [
        [name, *(_percent(_float(others.get(heading, {}).get(name))) for heading in columns)]
        for name in means
        if name != "mIoU"
    ]
    rows.insert(0, ["mIoU", *(_percent(_mean(np.array(list(iou.values())))) for iou in columns.values())])
    above = len(rows)
    for name in dict.fromkeys(name for iou in columns.values() for name in iou):
        rows.append([name, *(_percent(iou.get(name, np.nan)) for iou in columns.values())])
    made = _html.table(["IoU, %", *columns], rows, "IoU of every class")
    for row in made[0][1][:above]:
        row.set("class", "mean")
    made[0][1][above - 1].set("class", "mean last")
    return made


def _rounds(group: str, rounds: Mapping[int, Round]) -> Element | None:
    """Charts of what was selected, and the numbers behind them."""
    told = {number: made for number, made in sorted(rounds.items()) if set(made.values) & set(_PANELS) or made.facts}
    if not told:
        return None
    classes = next(iter(told.values())).classes
    same = {number: made for number, made in told.items() if made.classes == classes}
    charts = []
    for name, panel in _PANELS.items():
        shown = _some([(number, made) for number, made in same.items() if name in made.values])
        if shown:
            table = np.stack([made.values[name] for _, made in shown])
            numbers = [number for number, _ in shown]
            charts.append(_bars(classes, panel, table, numbers, _EXPLAINED[name]))
    facts = list(dict.fromkeys(name for made in told.values() for name in made.facts))
    means = [name for name in ("precision", "iou") if any(name in made.values for made in told.values())]
    heading = ["round", *facts, *("mIoU, %" if name == "iou" else "precision, mean over classes" for name in means)]
    rows = [
        [
            str(number),
            *(made.facts.get(name, "–") for name in facts),
            *(_cell(name, _mean(made.values[name])) if name in made.values else "–" for name in means),
        ]
        for number, made in told.items()
    ]
    parts: list[Element | None] = [node("div", *charts, class_="charts"), _html.table(heading, rows, "rounds")]
    if charts:
        parts.append(_numbers(classes, same))
    return node("section", node("h2", f"Pseudo-labels: {group}" if group else "Pseudo-labels"), *parts)


def _numbers(classes: Sequence[str], rounds: Mapping[int, Round]) -> Element:
    columns = [
        (number, name, made.values[name]) for name in _PANELS for number, made in rounds.items() if name in made.values
    ]
    heading = ["class", *(f"{_PANELS[name]}, round {number}" for number, name, _ in columns)]
    rows = [
        [label, *(_cell(name, float(values[place])) for _, name, values in columns)]
        for place, label in enumerate(classes)
    ]
    return node("details", node("summary", "The numbers"), _html.table(heading, rows, "numbers of every class"))


def _training(run: RunFolder) -> Element | None:
    charts = []
    for name, line in sorted(run.steps.items()):
        places = sorted(line)
        values = [line[place] for place in places]
        if len(places) > 1:
            charts.append(_curve(_words(name), places, values))
    return node("section", node("h2", "Training"), node("div", *charts, class_="charts")) if charts else None


def _pictures(run: RunFolder) -> Element | None:
    figures = []
    for name, data in run.pictures.items():
        width = int.from_bytes(data[16:20], "big")
        shown = _html.image(data, _words(name))
        if width >= 600:
            shown.set("class", "wide")
        box = node("div", shown, class_="scroll", tabindex="0", role="region", aria_label=_words(name))
        figures.append(node("figure", node("figcaption", _words(name)), box, class_="sheet"))
    return node("section", node("h2", "Pictures"), *figures) if figures else None


def _bars(classes: Sequence[str], panel: str, table: Array, numbers: Sequence[int], caption: str) -> Element:
    return _chart(caption, True, lambda ink: bars_figure(classes, {panel: table}, numbers, ink))


def _curve(name: str, places: Sequence[int], values: Sequence[float]) -> Element:
    return _chart(f"{name} by step", True, lambda ink: curves_figure({name: values}, places, "step", "", ink))


def _chart(text: str, caption: bool, draw: Callable[[Ink], Figure]) -> Element:
    """A figure in light and dark; its text is a caption, or for those only who cannot see the figure."""
    figures = {ink: draw(ink) for ink in (LIGHT, DARK)}
    light, dark = (png(figure, dpi=_DPI, facecolor="none") for figure in figures.values())
    width = round(96 * figures[LIGHT].get_figwidth())
    shown = _html.image(light, text, dark=dark, width=width)
    return node("figure", shown, node("figcaption", text) if caption else None, style=f"width: {width}px")


def _some(items: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """All, or the first, the last and some between."""
    if len(items) <= _MOST_ROUNDS:
        return items
    places = np.linspace(0, len(items) - 1, _MOST_ROUNDS).round().astype(int)
    return [items[place] for place in places]


def _mean(values: Array) -> float:
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else float("nan")


def _percent(value: float) -> Element:
    if not np.isfinite(value):
        return node("td", "–")
    share = min(100.0, max(0.0, value))
    return node("td", f"{value:.1f}", class_="bar", style=f"--percent: {share:.1f}")


def _cell(name: str, value: float) -> str:
    if not np.isfinite(value):
        return "∞" if value > 0 else "–"
    if name == "thresholds":
        return probability_text(value)
    return f"{value:.1f}" if name == "iou" else share_text(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _float(value: Any) -> float:
    return float(value) if _is_number(value) else float("nan")


def _words(name: str) -> str:
    return str(name).replace("_", " ").replace("-", " ") if str(name).islower() else str(name)


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:.1f}" if 10 <= abs(value) < 1e6 else f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(one) for one in value)
    return str(value)
