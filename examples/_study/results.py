"""Results in a file, and their tables."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from _common.files import save_json

from _study.tables import heading, row
from selftrain_seg.stopping import RoundCheck


class Results:
    """``{network: {seed: {variant: result}}}`` in a JSON file that is complete at any time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def get(self, network: str, seed: int, variant: str) -> Any:
        """Return a result, or None."""
        return self.found.get(network, {}).get(str(seed), {}).get(variant)

    def made_with(self, network: str, settings: dict[str, Any]) -> None:
        """Refuse settings that differ from those of the existing results."""
        earlier = self.found.setdefault(network, {}).setdefault("settings", settings)
        other = {name: earlier.get(name) for name, value in settings.items() if earlier.get(name) != value}
        changed = [f"{name} {value}, now {settings[name]}" for name, value in other.items()]
        if changed:
            raise SystemExit(f"{self.path}: made with {'; '.join(changed)}; remove it, or choose another --out")

    def put(self, network: str, seed: int, variant: str, result: dict[str, Any]) -> None:
        """Add a result and write the file."""
        self.found.setdefault(network, {}).setdefault(str(seed), {})[variant] = result
        save_json(self.found, self.path)


def gains(results: Results, network: str, seeds: Iterable[int], control: str, bound: str) -> str:
    """Return a markdown table of the mIoU of each seed, and its gain over the control of the same seed."""
    seeds = [seed for seed in seeds if results.get(network, seed, control) is not None]
    names = dict.fromkeys(name for seed in seeds for name in results.found[network][str(seed)] if name != "probe")
    heads = ["", *(f"seed {seed}" for seed in seeds), "mean", "gain", "worst gain", "share of the bound's gain"]
    lines = heading(heads)
    miou = {
        name: {seed: one["mIoU"] for seed in seeds if (one := results.get(network, seed, name)) is not None}
        for name in names
    }

    def gain(name: str) -> list[float]:
        return [value - miou[control][seed] for seed, value in miou[name].items()]

    for name, found in miou.items():
        cells = [name, *(f"{found[seed]:.1f}" if seed in found else "–" for seed in seeds)]
        cells += [
            f"{statistics.mean(found.values()):.1f}",
            f"{statistics.mean(gain(name)):+.1f}",
            f"{min(gain(name)):+.1f}",
        ]
        most = [value - miou[control][seed] for seed, value in miou.get(bound, {}).items() if seed in found]
        cells.append(f"{sum(gain(name)) / sum(most):.2f}" if len(most) == len(found) and sum(most) > 0 else "–")
        lines.append(row(cells))
    return "\n".join(lines)


def checks(results: Results, network: str, seeds: Iterable[int], score: str, tolerance: float) -> str:
    """Return a markdown table of the verdict of RoundCheck on each run, and the mIoU of the round that it keeps."""
    lines = ["| | seed | score by round | mIoU by round | keeps | mIoU kept |", "|---" * 6 + "|"]
    for seed in seeds:
        start = results.get(network, seed, "source only")
        for name, run in results.found.get(network, {}).get(str(seed), {}).items():
            if name == "probe" or "rounds" not in run or score not in start:
                continue
            rounds = [start, *run["rounds"]]
            check = RoundCheck(score, tolerance=tolerance, patience=len(rounds))
            for number, one in enumerate(rounds):
                check.record(number, {score: one[score]})
            best = check.verdict().best
            verdict = f"round {best}" if best else "do not adapt"
            by_round = [", ".join(f"{one[key]:.1f}" for one in rounds) for key in (score, "mIoU")]
            lines.append(f"| {name} | {seed} | {' | '.join(by_round)} | {verdict} | {rounds[best]['mIoU']:.1f} |")
    return "\n".join(lines)


def table(results: Results, network: str, seeds: Iterable[int], classes: Iterable[str]) -> str:
    """Return a markdown table of means over seeds: mIoU and check after each round, the rest after the last round."""
    seeds = [seed for seed in seeds if results.found.get(network, {}).get(str(seed))]
    names = dict.fromkeys(name for seed in seeds for name in results.found[network][str(seed)] if name != "probe")
    classes = list(classes)
    heads = ["", "seeds", "mIoU", "averaged weights", *classes]
    heads += ["labels right, %", "gradient from wrong ones, %", "check", "CPU minutes"]
    lines = heading(heads)
    for name in names:
        found = [one for seed in seeds if (one := results.get(network, seed, name)) is not None]

        def mean(pick: Callable[[Any], Any], digits: int, found: list[Any] = found) -> str:
            values = [value for one in found if (value := pick(one)) is not None and value == value]  # not NaN
            return f"{statistics.mean(values):.{digits}f}" if values else "–"

        def by_round(key: str, mean: Callable[..., str] = mean, found: list[Any] = found) -> str:
            count = min(len(one.get("rounds", [one])) for one in found)
            return ", ".join(mean(lambda one, k=k: one.get("rounds", [one])[k].get(key), 1) for k in range(count))

        cells = [name, str(len(found)), by_round("mIoU")]
        cells.append(mean(lambda one: one.get("averaged weights", {}).get("mIoU"), 1))
        cells += [mean(lambda one, c=c: one["iou"][c], 0) for c in classes]
        for key in ("precision", "gradient from wrong labels"):
            cells.append(
                mean(
                    lambda one, key=key: 100 * about[key] if (about := one.get("labels")) and about["share"] else None,
                    0,
                )
            )
        cells += [by_round("restyled source"), mean(lambda one: one.get("CPU minutes"), 1)]
        lines.append(row(cells))
    return "\n".join(lines)
