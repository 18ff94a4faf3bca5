"""Read a run folder. Damaged files are listed, missing files are skipped."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from selftrain_seg.store._files import MANIFEST, read_json
from selftrain_seg.visualize._host import Array
from selftrain_seg.visualize.about import ABOUT, PROGRESS
from selftrain_seg.visualize.records import PICTURES, ROUNDS, STEPS

VALUES = ("thresholds", "selected", "precision", "iou")

_STORE = "pseudo-labels"


@dataclass
class Round:
    """The recorded values of a round: (C,) arrays by name, NaN where unknown, and facts about all classes together."""

    classes: list[str]
    values: dict[str, Array] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)  # mean IoU of subsets of the classes
    facts: dict[str, str] = field(default_factory=dict)
    share: float = math.nan  # share of all pixels that have a pseudo-label
    name: str = ""


@dataclass
class RunFolder:
    """The readable content of a run folder."""

    arguments: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, dict[int, Round]] = field(default_factory=dict)
    steps: dict[str, dict[int, float]] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)


def read_run(folder: Path) -> RunFolder:
    """Read the files listed at :func:`report`."""
    run = RunFolder()

    def read(path: Path, reader: Callable[[Path], Any]) -> Any:
        try:
            return reader(path)
        except (OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
            run.damaged.append(path.relative_to(folder).as_posix())
            return None

    objects = {"arguments.json": run.arguments, "result.json": run.result, ABOUT: run.about, PROGRESS: run.progress}
    for name, kept in objects.items():
        if (folder / name).exists():
            kept.update(read(folder / name, _mapping) or {})
    for path in sorted(folder.glob(f"{_STORE}*/round-*/{MANIFEST}")):
        group = path.parts[-3].removeprefix(_STORE).lstrip("-_ ")
        _merge(run, group, read(path, _stored_round))
    for path in sorted([*folder.glob(f"{ROUNDS}/round-*.json"), *folder.glob(f"{ROUNDS}/*/round-*.json")]):
        group = "" if path.parent.name == ROUNDS and path.parent.parent == folder else path.parent.name
        _merge(run, group, read(path, _recorded_round))
    if (folder / STEPS).exists():
        read(folder / STEPS, lambda path: _read_steps(path, run.steps))
    for path in sorted(folder.glob(f"{PICTURES}/*.png"), key=lambda path: _natural(path.stem)):
        data = read(path, _png_bytes)
        if data is not None:
            run.pictures[path.stem] = data
    return run


def _merge(run: RunFolder, group: str, found: tuple[int, Round] | None) -> None:
    """Add a round; recorded values take precedence over those of the store of pseudo-labels."""
    if found is None:
        return
    number, new = found
    rounds = run.groups.setdefault(group, {})
    old = rounds.get(number)
    if old is not None and len(old.classes) == len(new.classes):
        new.values = {**old.values, **new.values}
        new.facts = {**old.facts, **new.facts}
        new.share = old.share
    rounds[number] = new


def _mapping(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return dict(content.items())


def _recorded_round(path: Path) -> tuple[int, Round]:
    content = _mapping(path)
    classes = [str(name) for name in content["classes"]]
    if not classes:
        raise ValueError("no classes")
    made = Round(classes, name=str(content.get("name", "")))
    for name in VALUES:
        if content.get(name) is not None:
            made.values[name] = _numbers(content[name], len(classes))
            if (made.values[name] < 0).any() or (name == "precision" and (made.values[name] > 1).any()):
                raise ValueError(f"{name} out of range")
    made.means = {
        str(name): math.nan if mean is None else float(mean) for name, mean in content.get("means", {}).items()
    }
    return int(content["round"]), made


def _stored_round(path: Path) -> tuple[int, Round]:
    """Read a round from the manifest of a ``PseudoLabelStore``, which counts rounds from 0."""
    content = read_json(path)
    number = int(content["num_classes"])
    made = Round([str(name) for name in content["classes"] or (f"class {index}" for index in range(number))])
    if content["thresholds"] is not None:
        made.values["thresholds"] = _numbers(content["thresholds"], number)
    if content["predicted"] is not None:
        selected, predicted = (_numbers(content[name], number) for name in ("selected", "predicted"))
        with np.errstate(divide="ignore", invalid="ignore"):
            made.values["selected"] = np.where(predicted > 0, selected / predicted, np.nan)
    if isinstance(content["portion"], float):
        made.facts["portion"] = f"{content['portion']:g}"
    made.facts["images"] = f"{content['images']:,}"
    made.share = float(content["selected_share"])
    made.facts["pixels labelled"] = f"{100 * made.share:.1f} %"
    return int(content["round"]) + 1, made


def _read_steps(path: Path, steps: dict[str, dict[int, float]]) -> None:
    """Read the recorded steps. The last line of a step wins, and incomplete lines are skipped."""
    for line in path.read_bytes().splitlines():
        try:
            content = json.loads(line)
            step = int(content.pop("step"))
            numbers = {name: float("nan" if value is None else value) for name, value in content.items()}
            float(step)  # OverflowError if no axis can hold it
        except (ValueError, AttributeError, LookupError, TypeError, OverflowError, RecursionError):
            continue
        for name, number in numbers.items():
            steps.setdefault(name, {})[step] = number


def _png_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or not data.endswith(b"IEND\xaeB`\x82"):
        raise ValueError("not a complete PNG file")
    return data


def _numbers(values: Any, expected: int) -> Array:
    array = np.array([math.nan if value is None else float(value) for value in values], np.float64)
    if array.shape != (expected,):
        raise ValueError(f"expected {expected} values, got {array.shape}")
    return array


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts "round 2" before "round 10"."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]
