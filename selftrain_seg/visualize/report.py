"""Write an HTML report of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selftrain_seg.visualize import _html
from selftrain_seg.visualize._figure import new_figure, signed_text
from selftrain_seg.visualize._html import Element, node
from selftrain_seg.visualize._run_folder import RunFolder, read_run
from selftrain_seg.visualize._sections import pictures, pseudo_labels, result, training
from selftrain_seg.visualize._tracks import BEFORE, Track, as_float, is_number, of_result, of_rounds, words
from selftrain_seg.visualize.records import write

__all__ = ["report"]

_LONG = 40  # characters of a fact that is a sentence


def report(run_dir: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write one HTML file that shows a run and needs no network, script or other file.

    The report is made from plain files in ``run_dir``. Missing files are skipped, so unfinished and killed runs have a
    report as well. On the command line, use ``python -m selftrain_seg.visualize RUN``.

    - ``about.json``: command, versions, date and machine, written by :func:`record_about`.
    - ``progress.json``: written by :func:`record_progress`.
    - ``arguments.json``: an object with the settings of the run.
    - ``result.json``: an object. Its numbers and strings are listed. ``iou``, an object class -> IoU in percent, is
      shown as a table; each value that is an object with ``iou`` becomes a column of that table.
    - ``rounds/round-0001.json``, ``rounds/{group}/round-0001.json``: written by :func:`record_round`. Gains in mIoU are
      relative to round 0, or to the first round if there is no round 0; the best round is marked.
    - ``pseudo-labels/round-0000/manifest.json``: a ``PseudoLabelStore``, whose round 0 is round 1 of the run.
      ``pseudo-labels-{group}`` belongs to a group.
    - ``steps.jsonl``: written by :func:`record_step`.
    - ``pictures/*.png``: written by :func:`record_picture`.

    Equal files and the same version of matplotlib give the same report, byte for byte.

    Args:
        run_dir: folder of the run.
        out: file to write, completely or not at all; None for ``report.html`` in ``run_dir``.

    Returns:
        Path of the report.

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
    new_figure(1, 1)  # raises ImportError early if matplotlib is missing
    run = read_run(folder)
    name = folder.resolve().name or "run"
    path = folder / "report.html" if out is None else Path(out)
    tracks, networks = of_rounds(run), of_result(run.result)
    sections = [result(run, tracks, networks), *pseudo_labels(run), training(run), pictures(run), _arguments(run)]
    verdict = _verdict(tracks, networks)
    head = [node("h1", name), _origin(run), _progress(run), verdict, *_facts(run.result, known=verdict is not None)]
    if not any(section is not None for section in sections):
        head.append(node("p", "Nothing has been recorded yet."))
    if run.damaged:
        head.append(node("p", "Damaged files that were skipped: " + ", ".join(run.damaged)))
    write(path, _html.page(f"{name}: report", *head, *sections))
    return path


def _origin(run: RunFolder) -> Element:
    """Command, date, versions and machine."""
    about = run.about
    versions = about.get("versions")
    parts = [_date(about.get("started"))]
    if isinstance(about.get("resumed"), list) and about["resumed"]:
        times = len(about["resumed"])
        parts.append(f"resumed {times} time{'s' if times > 1 else ''}, last {_date(about['resumed'][-1])}")
    if isinstance(versions, Mapping):
        parts += [f"{name} {_text(version)}" for name, version in versions.items()]
    parts.append(_text(about.get("machine", "")))
    if is_number(about.get("processes")) and about["processes"] > 1:
        parts.append(f"{about['processes']} processes")
    lines = [node("p", " · ".join(filter(None, ["Report of a self-training run", *parts])), class_="soft origin")]
    if isinstance(about.get("command"), str):
        lines.append(node("pre", about["command"], class_="command"))
    return node("div", *lines)


def _progress(run: RunFolder) -> Element | None:
    """Progress of a run without a result."""
    done, total = as_float(run.progress.get("done")), as_float(run.progress.get("total"))
    if run.result or not 0 <= done < total < 1e15:  # False for NaN
        return None
    stage, written = _text(run.progress.get("stage", "")), _date(run.progress.get("date"))
    text = [
        f"{stage}: " if stage else "",
        f"{done:,.0f} of {total:,.0f}",
        f". Last update: {written}." if written else ".",
    ]
    return node(
        "div",
        node("p", node("strong", "In progress. "), "".join(text)),
        node("progress", value=f"{done:.0f}", max=f"{total:.0f}", aria_label="progress"),
        node("p", "To update this page: python -m selftrain_seg.visualize RUN", class_="soft"),
        class_="progress",
    )


def _verdict(tracks: list[Track], networks: Track | None) -> Element | None:
    """State the gain in mIoU."""
    measured = [track for track in tracks if track.best is not None]
    if not measured and networks is not None and networks.best is not None:
        measured = [networks]
    if not measured:
        return None
    if len(measured) == 1:
        return _sentence(measured[0])
    heading = ["mIoU, %", "before", "at the end", "gain", "best"]
    rows: list[list[str | Element]] = []
    for track in measured:
        start, last, best = track.columns[track.reference], track.columns[-1], track.columns[track.best or 0]
        gain = track.gain(len(track.columns) - 1)
        numbers = (
            _one_decimal(start.mean),
            _one_decimal(last.mean),
            signed_text(gain),
            f"{_one_decimal(best.mean)} ({best.name})",
        )
        rows.append([track.group or "run", *numbers])
    return node("div", _html.table(heading, rows, "gain in mIoU"), class_="verdict")


def _sentence(track: Track) -> Element:
    place = len(track.columns) - 1 if track.by_round else track.best or 0
    last = track.columns[place]
    over = dict.fromkeys([track.reference, 0])  # the start of training, and the first network
    called = {BEFORE: "the network before training"}
    gains = [
        f"{signed_text(track.gain(place, one))} over {called.get(column.name, column.name)}"
        f" ({_one_decimal(column.mean)})"
        for one, column in ((one, track.columns[one]) for one in over)
    ]
    when = "after" if track.by_round else "with"
    text: list[Element | str] = [node("strong", f"{_one_decimal(last.mean)} % mIoU"), f" {when} {last.name}: "]
    text += [node("strong", gains[0]), *(f", {gain}" for gain in gains[1:]), "."]
    if track.by_round and track.best is not None and track.best != place:
        best = track.columns[track.best]
        text.append(f" The best is {best.name} with {_one_decimal(best.mean)} %.")
    note = "Points of mIoU on the validation images. In a single run, a difference of about one point can be chance."
    return node("div", node("p", *text), node("p", note, class_="soft"), class_="verdict")


def _facts(found: Mapping[str, Any], known: bool) -> list[Element | None]:
    """Show what is no table: short values as tiles, sentences below. The headline has the mIoU if that is known."""
    facts = {name: value for name, value in found.items() if isinstance(value, (str, int, float))}
    if known:
        facts.pop("mIoU", None)
    long = {name: value for name, value in facts.items() if isinstance(value, str) and len(value) > _LONG}
    tiles = _pairs(_fact(name, value) for name, value in facts.items() if name not in long)
    lines = [
        node("p", node("strong", words(name).capitalize()), f": {text.rstrip('.')}.", class_="told")
        for name, text in long.items()
    ]
    return [node("dl", *tiles, class_="facts") if tiles else None, *lines]


def _fact(name: str, value: Any) -> tuple[str, Any]:
    """Convert seconds and megabytes to readable units, and percentages to one decimal."""
    if name == "seconds" and is_number(value) and 0 <= value < 1e9:
        minutes, seconds = divmod(round(value), 60)
        hours, minutes = divmod(minutes, 60)
        return (
            "time",
            f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s",
        )
    if name == "peak_memory_mb" and is_number(value):
        return "peak memory", f"{value / 1000:.1f} GB"
    if ("mIoU" in name or name == "rare") and is_number(value):
        return name, _one_decimal(float(value))
    return name, value


def _arguments(run: RunFolder) -> Element | None:
    if not run.arguments:
        return None
    return node("section", node("h2", "Arguments"), node("dl", *_pairs(run.arguments.items()), class_="pairs"))


def _pairs(pairs: Any) -> list[Element]:
    return [node("div", node("dt", words(name)), node("dd", _text(value) or "–")) for name, value in pairs]


def _date(value: Any) -> str:
    """Format a date of ``record_about`` as 2026-11-27 21:58 UTC; return other values unchanged."""
    text = _text(value) if value is not None else ""
    return f"{text[:10]} {text[11:16]} UTC" if text.endswith("+00:00") and len(text) == 25 else text


def _one_decimal(value: float) -> str:
    return f"{value:.1f}" if value == value else "–"


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:.1f}" if 10 <= abs(value) < 1e6 else f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(one) for one in value)
    return str(value)
