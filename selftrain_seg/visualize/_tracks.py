"""The measured networks of a run: their IoUs, the reference they are compared with, and the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from selftrain_seg.visualize._host import Array
from selftrain_seg.visualize._run_folder import Round, RunFolder

SOURCE, ADAPTED, BEFORE = "source only", "BatchNorm re-estimated", "before"
_NO_MEANS = ("mIoU", "seed", "seconds", "peak_memory_mb")  # numbers of a network that are no means of subsets


class Column(NamedTuple):
    """A measured network: name, round if it has one, IoU of each class and mean of subsets of classes, in percent."""

    name: str
    number: int | None
    iou: Mapping[str, float]
    means: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Mean IoU of the classes that have one; NaN if none has."""
        return mean(np.array(list(self.iou.values()), np.float64))


@dataclass
class Track:
    """A sequence of networks; gains are relative to the one at index ``reference``."""

    group: str
    columns: Sequence[Column]
    reference: int

    @property
    def by_round(self) -> bool:
        """Whether the networks belong to rounds."""
        return self.columns[0].number is not None

    @property
    def best(self) -> int | None:
        """Index of the highest mIoU after the reference; None if there is none."""
        means = [one.mean for one in self.columns]
        after = [place for place in range(self.reference + 1, len(means)) if np.isfinite(means[place])]
        return max(after, key=lambda place: means[place]) if after else None

    def gain(self, place: int, over: int | None = None) -> float:
        """Gain in mIoU over an earlier network, by default the reference, in points; NaN if it is not earlier."""
        over = self.reference if over is None else over
        return self.columns[place].mean - self.columns[over].mean if place > over else float("nan")


def round_name(number: int, made: Round, numbers: Sequence[int]) -> str:
    """The name of a round."""
    if made.name:
        return made.name
    if number > 0:
        return f"round {number}"
    return SOURCE if number < 0 else ADAPTED if min(numbers) < 0 else BEFORE


def of_rounds(run: RunFolder) -> list[Track]:
    """Create a track for each group whose rounds have an IoU."""
    tracks = []
    for group, rounds in sorted(run.groups.items()):
        measured = {number: made for number, made in sorted(rounds.items()) if "iou" in made.values}
        if measured:
            columns = [
                Column(
                    round_name(number, made, list(measured)),
                    number,
                    dict(zip(made.classes, map(float, made.values["iou"]), strict=True)),
                    made.means,
                )
                for number, made in measured.items()
            ]
            starts = [place for place, one in enumerate(columns) if one.number is not None and one.number <= 0]
            tracks.append(Track(group, columns, max(starts, default=0)))
    return tracks


def of_result(result: Mapping[str, Any]) -> Track | None:
    """Create a track of the networks in ``result.json``, if there are several."""
    named = {"result": result, **result}
    columns = [of_network(name, value) for name, value in named.items() if has_iou(value)]
    if len(columns) < 2:
        return None
    starts = [place for place, one in enumerate(columns) if one.name in (SOURCE, ADAPTED, BEFORE)]
    return Track("", columns, max(starts, default=0))


def has_iou(value: Any) -> bool:
    """Whether a value in ``result.json`` has the IoUs of a network."""
    return isinstance(value, Mapping) and isinstance(value.get("iou"), Mapping)


def of_network(name: str, value: Mapping[str, Any]) -> Column:
    """Create a column of a network in ``result.json``: its IoUs, and its other numbers as means."""
    means = {str(key): float(one) for key, one in value.items() if is_number(one) and key not in _NO_MEANS}
    return Column(words(name), None, {str(key): as_float(one) for key, one in value["iou"].items()}, means)


def mean(values: Array) -> float:
    """Mean of the finite values; NaN if there are none."""
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else float("nan")


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def as_float(value: Any) -> float:
    """Convert a number to float, anything else to NaN."""
    return float(value) if is_number(value) else float("nan")


def words(name: str) -> str:
    """Replace ``_`` and ``-`` by spaces in a lower-case name; leave other names unchanged."""
    return str(name).replace("_", " ").replace("-", " ") if str(name).islower() else str(name)
