"""The sections of a report: result, pseudo-labels, training and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from selftrain_seg.visualize import _html
from selftrain_seg.visualize._figure import DARK, LIGHT, Ink, probability_text, share_text, signed_text
from selftrain_seg.visualize._host import Array
from selftrain_seg.visualize._html import Element, node
from selftrain_seg.visualize._run_folder import Round, RunFolder
from selftrain_seg.visualize._tracks import (
    ADAPTED,
    BEFORE,
    SOURCE,
    Track,
    has_iou,
    mean,
    of_network,
    round_name,
    words,
)
from selftrain_seg.visualize.bar_charts import bars_figure
from selftrain_seg.visualize.line_charts import curves_figure
from selftrain_seg.visualize.records import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 192  # two pixels per CSS pixel
_MOST_ROUNDS = 6  # in a table, and in a chart of bars
_PANELS = {"thresholds": "threshold", "selected": "selected", "precision": "precision"}
_LAST = " The numbers on the right are those of the last round."
_CHART_CAPTIONS = {
    "thresholds": "The confidence that a pixel must reach to get this label. On the log-odds scale, 0.9, 0.99 and "
    "0.999 are about equally far apart." + _LAST,
    "selected": "The share of the pixels predicted as this class that got it as their label. Shares above 100 % occur "
    "when re-weighting assigns the class to pixels that were predicted as another." + _LAST,
    "precision": "The share of the pixels with this label whose label is right. True labels are used only for this "
    "number, not for training." + _LAST,
}
_PICTURE_CAPTIONS = {
    "confidence": "The confidence of the network's prediction, on a log-odds scale.",
    "predictions": "Predictions of the network for the first images.",
    "selection": "Which pixels got a pseudo-label, and which of those are wrong.",
    "mixing": "Images and labels after mixing, as used in training.",
}
_STEP_CAPTIONS = {
    "mIoU on restyled source": "On held-out source images in the colours of target images. The check compares these "
    "scores, which need no target labels.",
}
_WIDE = 1000  # pixels of a picture that half a page would make too small
_SHORT = {SOURCE: "source\nonly", ADAPTED: "BatchNorm\nre-estimated", BEFORE: "before"}


def result(run: RunFolder, tracks: Sequence[Track], networks: Track | None) -> Element | None:
    """Show mIoU by round, and the IoU of each class after each round or for each network in ``result.json``."""
    parts: list[Element | None] = []
    charts = [_mean_chart(tracks)]
    if networks is not None:
        parts.append(_iou_table(networks))
    elif tracks:
        parts += [_iou_table(track, alone=len(tracks) == 1) for track in tracks]
    elif has_iou(run.result):
        parts.append(_iou_table(Track("", [of_network("result", run.result)], 0)))
    if len(tracks) == 1 and len(tracks[0].columns) > 1:
        charts.append(_class_chart(tracks[0]))
    charts = [chart for chart in charts if chart is not None]
    if not parts and not charts:
        return None
    if not charts:
        return node("section", node("h2", "Result"), *parts)
    return node("section", node("h2", "Result"), node("div", node("div", *charts), node("div", *parts), class_="split"))


def _mean_chart(tracks: Sequence[Track]) -> Element | None:
    lines = {
        track.group or "mIoU": {column.number: column.mean for column in track.columns}
        for track in tracks
        if len(track.columns) > 1
    }
    if not lines:
        return None
    places = sorted({number for line in lines.values() for number in line if number is not None})
    series = {name: [line.get(place, np.nan) for place in places] for name, line in lines.items()}
    called = {column.number: column.name for track in tracks for column in track.columns}
    names = [_SHORT.get(called[place], called[place].removeprefix("round ")) for place in places]
    best = None
    if len(tracks) == 1 and tracks[0].best is not None:
        best = tracks[0].columns[tracks[0].best].number
    text = "mIoU by round" + ("; the best round is ringed" if best is not None else "") + "."
    return _chart(
        text,
        True,
        lambda ink: curves_figure(
            series, places, "round", "mIoU, %", ink, from_zero=True, most=100, names=names, marked=best
        ),
    )


def _class_chart(track: Track) -> Element | None:
    """Chart the change of each class since the reference."""
    if len(track.columns) < track.reference + 2:
        return None
    columns = [track.columns[track.reference], track.columns[-1]]
    classes = list(columns[0].iou)
    table = np.array([[column.iou.get(name, np.nan) for name in classes] for column in columns])
    names = [column.name for column in columns]
    text = f"IoU of each class. The numbers on the right are the change from “{names[0]}” to “{names[-1]}”, in points."
    return _chart(text, True, lambda ink: bars_figure(classes, {"IoU": table}, names, ink, panel=3.3))


def _iou_table(track: Track, alone: bool = True) -> Element:
    """Create the table of IoUs: means with their gains first, then classes."""
    shown = [0, track.reference, *range(track.reference + 1, len(track.columns))]
    shown = list(dict.fromkeys(shown))
    if track.by_round:
        keep = {0, track.reference, track.best, len(track.columns) - 1}
        between = [place for place in shown if place not in keep]
        most = min(len(between), _MOST_ROUNDS - len(keep - {None}))
        keep |= {between[int((place + 0.5) * len(between) / most)] for place in range(most)}
        shown = [place for place in shown if place in keep]
    columns = [track.columns[place] for place in shown]
    headings = [
        f"{column.name} (best)" if place == track.best and track.by_round else column.name
        for place, column in zip(shown, columns, strict=True)
    ]
    headings = headings if alone else [f"{track.group}, {one}" if track.group else one for one in headings]
    change = track.by_round and len(track.columns) > track.reference + 1
    gains = [track.gain(place) for place in shown]
    start, last = track.columns[track.reference], track.columns[-1]
    rows: list[list[str | Element]] = [
        ["mIoU", *(_percent(column.mean, gain) for column, gain in zip(columns, gains, strict=True))]
    ]
    changes = [last.mean - start.mean]
    above = 1 + len({name for column in columns for name in column.means})
    for values in ([column.means for column in track.columns], [column.iou for column in track.columns]):
        for name in dict.fromkeys(name for place in shown for name in values[place]):
            rows.append([name, *(_percent(values[place].get(name, np.nan)) for place in shown)])
            changes.append(values[-1].get(name, np.nan) - values[track.reference].get(name, np.nan))
    if change:
        for cells, value in zip(rows, changes, strict=True):
            cells.append(_change(value))
        headings.append("change")
    made = _html.table(["IoU, %", *headings], rows, "IoU of every class")
    for row in made[0][1][:above]:
        row.set("class", "mean")
    made[0][1][above - 1].set("class", "mean last")
    _hide_between(made[0], [place not in (0, track.reference, len(track.columns) - 1) for place in shown])
    if not change and not any(gain == gain for gain in gains):
        return made
    note = f"Small numbers: gain in mIoU over “{start.name}”, in points." if any(gain == gain for gain in gains) else ""
    if change:
        note += f" Change: from “{start.name}” to “{last.name}”."
    return node("div", made, node("p", note.strip(), class_="note"))


def _hide_between(table: Element, between: Sequence[bool]) -> None:
    """Mark the columns that narrow screens hide."""
    for row in table.iter("tr"):
        for cell, hidden in zip(list(row)[1:], between, strict=False):
            if hidden and len(between) > 3:
                cell.set("class", f"{cell.get('class', '')} between".strip())


def pseudo_labels(run: RunFolder) -> list[Element | None]:
    """Create a section for each group of rounds."""
    return [_rounds(group, rounds) for group, rounds in sorted(run.groups.items())]


def _rounds(group: str, rounds: Mapping[int, Round]) -> Element | None:
    """Chart thresholds, shares and precision, with tables of their numbers."""
    reported = {
        number: made for number, made in sorted(rounds.items()) if set(made.values) & set(_PANELS) or made.facts
    }
    if not reported:
        return None
    classes = next(iter(reported.values())).classes
    same = {number: made for number, made in reported.items() if made.classes == classes}
    charts = [_labels_chart(reported)]
    for name, panel in _PANELS.items():
        shown = _thinned([(number, made) for number, made in same.items() if name in made.values])
        if shown:
            table = np.stack([made.values[name] for _, made in shown])
            numbers = [round_name(number, made, [0]) for number, made in shown]
            charts.append(_bars(classes, panel, table, numbers, _CHART_CAPTIONS[name]))
    facts = list(dict.fromkeys(name for made in reported.values() for name in made.facts))
    means = [name for name in ("precision", "iou") if any(name in made.values for made in reported.values())]
    heading = ["round", *facts, *("mIoU, %" if name == "iou" else "precision, mean over classes" for name in means)]
    rows = [
        [
            made.name or str(number),
            *(made.facts.get(name, "–") for name in facts),
            *(_cell(name, mean(made.values[name])) if name in made.values else "–" for name in means),
        ]
        for number, made in reported.items()
    ]
    parts: list[Element | None] = [node("div", *charts, class_="charts"), _html.table(heading, rows, "rounds")]
    if len(charts) > 1:
        parts.append(_numbers(classes, same))
    return node("section", node("h2", f"Pseudo-labels: {group}" if group else "Pseudo-labels"), *parts)


def _labels_chart(rounds: Mapping[int, Round]) -> Element | None:
    """Chart the share of labelled pixels and their precision by round."""
    lines, sentences = {}, []
    if any(np.isfinite(made.share) for made in rounds.values()):
        lines["pixels labelled, %"] = [100 * made.share for made in rounds.values()]
        sentences.append("the share of all pixels that got a label")
    elif any("selected" in made.values for made in rounds.values()):
        lines["labelled, %"] = [100 * mean(made.values.get("selected", np.array([]))) for made in rounds.values()]
        sentences.append("the share of the predicted pixels that got a label, mean over classes")
    if any("precision" in made.values for made in rounds.values()):
        lines["right, %"] = [100 * mean(made.values.get("precision", np.array([]))) for made in rounds.values()]
        sentences.append("the share of the labels that are right, mean over classes")
    if len(rounds) < 2 or not lines:
        return None
    text = f"Pseudo-labels by round: {'; and '.join(sentences)}."
    return _chart(
        text, True, lambda ink: curves_figure(lines, list(rounds), "round", "%", ink, from_zero=True, most=100)
    )


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


def training(run: RunFolder) -> Element | None:
    """Chart everything that was recorded by step."""
    charts = []
    for name, line in sorted(run.steps.items(), key=lambda item: ("loss" not in item[0], item[0])):
        places = sorted(line)
        if len(places) > 1:
            charts.append(_curve(words(name), places, [line[place] for place in places]))
    return node("section", node("h2", "Training"), node("div", *charts, class_="charts")) if charts else None


def pictures(run: RunFolder) -> Element | None:
    """Show every recorded picture: those of the networks before training first, wide ones over the whole page."""
    figures = []
    for name, data in sorted(run.pictures.items(), key=lambda item: _from_start(item[0])):
        text = [node("strong", words(name))]
        caption = next((caption for word, caption in _PICTURE_CAPTIONS.items() if word in name.lower()), "")
        told, image = node("figcaption", *text, f". {caption}" if caption else ""), _html.image(data, words(name))
        if int.from_bytes(data[16:20], "big") > _WIDE:  # where PNG files have their width
            figures.append(node("figure", told, _html.scroll(image, words(name)), class_="wide"))
        else:
            figures.append(node("figure", told, image))
    return node("section", node("h2", "Pictures"), node("div", *figures, class_="sheets")) if figures else None


def _from_start(name: str) -> int:
    start = (SOURCE, ADAPTED, BEFORE)
    return next((place for place, word in enumerate(start) if name.startswith(word)), len(start))


def _bars(classes: Sequence[str], panel: str, table: Array, numbers: Sequence[str], caption: str) -> Element:
    return _chart(caption, True, lambda ink: bars_figure(classes, {panel: table}, numbers, ink, panel=3.3))


def _curve(name: str, places: Sequence[int], values: Sequence[float]) -> Element:
    by = "round" if name.endswith(" by round") else "step"
    text = f"{name.removesuffix(' by round')} by {by}"
    more = f". {_STEP_CAPTIONS[name]}" if name in _STEP_CAPTIONS else ""
    thin = ". Thin: every recorded value; thick: moving average." if len(places) > 60 else ""
    return _chart(
        text,
        True,
        lambda ink: curves_figure({name: values}, places, by, "", ink, from_zero=True),
        caption=text + more + (thin if not more else thin.removeprefix(".")),
    )


def _chart(text: str, shown: bool, draw: Callable[[Ink], Figure], caption: str = "") -> Element:
    """Create a figure for light and dark mode, with a caption that is also its alternative text."""
    figures = {ink: draw(ink) for ink in (LIGHT, DARK)}
    light, dark = (png(figure, dpi=_DPI, facecolor="none") for figure in figures.values())
    width = round(96 * figures[LIGHT].get_figwidth())
    image = _html.image(light, text, dark=dark, width=width)
    return node("figure", image, node("figcaption", caption or text) if shown else None, class_="chart")


def _thinned(items: list[Any], most: int = _MOST_ROUNDS) -> list[Any]:
    """At most ``most`` items: the first, the last and some between."""
    if len(items) <= most:
        return items
    places = np.linspace(0, len(items) - 1, most).round().astype(int)
    return [items[place] for place in places]


def _percent(value: float, gain: float = float("nan")) -> Element:
    if not np.isfinite(value):
        return node("td", "–")
    share = min(100.0, max(0.0, value))
    more = node("small", signed_text(gain)) if gain == gain else None
    return node("td", f"{value:.1f}", more, class_="bar", style=f"--percent: {share:.1f}")


def _change(points: float) -> Element:
    if not np.isfinite(points):
        return node("td", "–")
    kind = "up" if points >= 0.05 else "down" if points <= -0.05 else "same"
    return node("td", signed_text(points), class_=kind)


def _cell(name: str, value: float) -> str:
    if not np.isfinite(value):
        return "∞" if value > 0 else "–"
    if name == "thresholds":
        return probability_text(value)
    return f"{value:.1f}" if name == "iou" else share_text(value)
