"""The tables of ``run_table.py``: results by row and by class, and the precision of pseudo-labels."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from selftrain_seg.store import PseudoLabelStore

Results = dict[str, list[dict[str, Any]]]  # name of a row -> ``result.json`` of each seed, with its folder


def on_streets(results: Results, seeds: list[int], base: str, trainers: set[str]) -> str:
    """Return the tables of the synthetic benchmark: gains over ``base``, and the IoU of each class."""
    columns = ["", "mIoU", "rare classes", f"over {base}", "beats it with every seed", "minutes", "memory, MB"]
    lines = [f"Seeds {', '.join(map(str, seeds))}; mean ± standard deviation, IoU in %.", "", *heading(columns)]
    for name, found in results.items():
        gains = _gains(results, name, base)
        bold = "**" if name in trainers else ""
        cells = [
            f"{bold}{name}{bold}",
            spread([one["mIoU"] for one in found]),
            spread([one["rare"] for one in found]),
            "" if name == base else f"{statistics.mean(gains):+.1f}",
            "" if name not in trainers else ("yes" if min(gains) > 0 else "no"),
            *_costs(found),
        ]
        lines.append(row(cells))
    return "\n".join([*lines, "", *by_class(results), ""])


def on_folders(results: Results, seeds: list[int], control: str) -> str:
    """Return the tables of other images: gains over ``control``, weights kept by the check, classes, pseudo-labels."""
    numbers = ", ".join(map(str, seeds))
    columns = ["", "mIoU", f"seeds {numbers}", f"over {control}", "by seed", "of what the check keeps"]
    columns += ["minutes", "memory, MB"]
    lines = ["IoU in %; mean ± standard deviation.", "", *heading(columns)]
    for name, found in results.items():
        gains = _gains(results, name, control)
        kept = [f"{one['kept mIoU']:.1f}" for one in found if one.get("kept mIoU") is not None]
        cells = [
            name,
            spread([one["mIoU"] for one in found]),
            ", ".join(f"{one['mIoU']:.1f}" for one in found),
            "" if name == control else f"{statistics.mean(gains):+.1f}",
            "" if name == control else ", ".join(f"{gain:+.1f}" for gain in gains),
            ", ".join(kept),
            *_costs(found),
        ]
        lines.append(row(cells))
    return "\n".join([*lines, "", *by_class(results), "", *labels_by_round(results), ""])


def by_class(results: Results) -> list[str]:
    """Return the lines of the table of the IoU of each class."""
    classes = list(next(iter(results.values()))[0]["iou"])
    lines = ["IoU of each class, mean over the seeds:", "", *heading(["", *classes])]
    for name, found in results.items():
        lines.append(row([name, *(_mean(one["iou"][label] for one in found) for label in classes)]))
    return lines


def labels_by_round(results: Results) -> list[str]:
    """Return the lines of the table of the share and precision of pseudo-labels; empty if no row has any."""
    lines: list[str] = []
    for name, found in results.items():
        runs = [_labels(one["folder"], len(one["iou"])) for one in found]
        for number in range(min(map(len, runs))):
            of_round = [rounds[number] for rounds in runs]
            cells = [_mean(one["share"] for one in of_round), _mean(one["right"] for one in of_round)]
            cells += [_mean(one["classes"][label] for one in of_round) for label in range(len(of_round[0]["classes"]))]
            lines.append(row([f"{name}, round {number + 1}", *cells]))
    if not lines:
        return []
    classes = list(next(iter(results.values()))[0]["iou"])
    head = heading(["", "labelled", "right", *classes])
    return [
        "Pseudo-labels: the share of pixels that have one, and how many are right, of all and of each class, in %:",
        "",
        *head,
        *lines,
    ]


def _labels(folder: Path, num_classes: int) -> list[dict[str, Any]]:
    """Return the share of labelled pixels of each round, their precision, and the precision of each class, in percent.

    Precisions are None without true labels.
    """
    if not (folder / "pseudo-labels").is_dir():
        return []
    store, rounds = PseudoLabelStore(folder / "pseudo-labels", num_classes), []
    for number in store.rounds():
        recorded = json.loads((folder / "rounds" / f"round-{number + 1:04d}.json").read_text(encoding="utf-8"))
        stored = store.round(number)
        counts = [int(count) for count in stored.counts.sum(0)]
        precision = recorded.get("precision", [None] * num_classes)  # unknown without --target-masks
        right = [None if share is None else 100 * share for share in precision]
        known = [(count, share) for count, share in zip(counts, right, strict=True) if share is not None]
        total, weighed = sum(count for count, _ in known), sum(count * share for count, share in known)
        share = 100 * sum(counts) / int(stored.pixels.sum())
        rounds.append({"share": share, "right": weighed / total if total else None, "classes": right})
    return rounds


def spread(values: list[float]) -> str:
    """Return mean ± sample standard deviation as text."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {deviation:.1f}"


def _gains(results: Results, name: str, base: str) -> list[float]:
    return [one["mIoU"] - other["mIoU"] for one, other in zip(results[name], results[base], strict=True)]


def _costs(found: list[dict[str, Any]]) -> list[str]:
    minutes = statistics.mean([one["seconds"] for one in found]) / 60
    return [f"{minutes:.1f}", f"{max(one['peak_memory_mb'] for one in found):.0f}"]


def _mean(values: Iterable[float | None]) -> str:
    """Return the mean of the values that are not None; a class that never occurs has no IoU."""
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.0f}" if known else "–"


def heading(columns: Sequence[str]) -> list[str]:
    """Return the first two lines of a markdown table."""
    return [row(columns), "|---" * len(columns) + "|"]


def row(cells: Sequence[str]) -> str:
    """Return a line of a markdown table."""
    return f"| {' | '.join(cells)} |"
