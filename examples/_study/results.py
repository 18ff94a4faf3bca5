"""Results in a file, and as tables."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from _common.files import save_json


class Results:
    """``{network: {seed: {variant: result}}}`` in a file that is whole at any time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def get(self, network: str, seed: int, variant: str) -> Any:
        """Return what was measured, or None."""
        return self.found.get(network, {}).get(str(seed), {}).get(variant)

    def made_with(self, network: str, settings: dict[str, Any]) -> None:
        """Refuse to mix results of other settings with these."""
        before = self.found.setdefault(network, {}).setdefault("settings", settings)
        other = {name: before.get(name) for name, value in settings.items() if before.get(name) != value}
        changed = [f"{name} {value}, now {settings[name]}" for name, value in other.items()]
        if changed:
            raise SystemExit(f"{self.path}: made with {'; '.join(changed)}; remove it, or choose another --out")

    def put(self, network: str, seed: int, variant: str, result: dict[str, Any]) -> None:
        """Add a result and write the file."""
        self.found.setdefault(network, {}).setdefault(str(seed), {})[variant] = result
        save_json(self.found, self.path)


def table(results: Results, network: str, seeds: Iterable[int], classes: Iterable[str]) -> str:
    """A markdown table, mean over the seeds that are there."""
    seeds = [seed for seed in seeds if results.found.get(network, {}).get(str(seed))]
    names = dict.fromkeys(name for seed in seeds for name in results.found[network][str(seed)] if name != "probe")
    classes = list(classes)
    heads = ["", "seeds", "mIoU", "averaged weights", *classes]
    heads += ["share", "precision", "gradient from wrong", "check", "min"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in names:
        found = [one for seed in seeds if (one := results.get(network, seed, name)) is not None]

        def mean(pick: Callable[[Any], Any], digits: int, found: list[Any] = found) -> str:
            there = [value for one in found if (value := pick(one)) is not None and value == value]
            return f"{statistics.mean(there):.{digits}f}" if there else "–"

        cells = [name, str(len(found)), mean(lambda one: one["mIoU"], 1)]
        cells.append(mean(lambda one: one.get("averaged weights", {}).get("mIoU"), 1))
        cells += [mean(lambda one, c=c: one["iou"][c], 0) for c in classes]
        for key in ("share", "precision", "gradient from wrong labels"):
            cells.append(mean(lambda one, key=key: one.get("labels", {}).get(key), 2))
        cells.append(mean(lambda one: one.get("restyled source"), 1))
        cells.append(mean(lambda one: one.get("minutes"), 1))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
