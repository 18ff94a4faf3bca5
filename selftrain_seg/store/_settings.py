"""Settings of a round, which must not change while it is written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.store._encode import KINDS
from selftrain_seg.store._files import FORMAT

__all__ = ["RoundSettings"]

Colours = tuple[tuple[int, int, int], ...]


class RoundSettings(NamedTuple):
    """Settings of a round; readable as soon as the round is started.

    Attributes:
        round: number of the round.
        names: names of all images, in order.
        thresholds: (C,) float64, bit for bit those passed to ``write``, or None.
        portion: the portion passed to ``write``, a float or (C,) float64, or None.
        meta: metadata of the user.
        num_classes: C.
        ignore_index: label of the pixels that are not selected.
        classes: names of the classes, or None.
        palette: RGB colours of the classes.
        keep: fields stored in addition to the labels, if the pseudo-labels have them.
        top_k: number of entries stored of each soft label.
    """

    round: int
    names: tuple[str, ...]
    thresholds: Tensor | None
    portion: float | Tensor | None
    meta: dict[str, Any]
    num_classes: int
    ignore_index: int
    classes: tuple[str, ...] | None
    palette: tuple[tuple[int, int, int], ...]
    keep: tuple[str, ...]
    top_k: int


def to_content(settings: RoundSettings) -> dict[str, Any]:
    """Convert the settings to plain values for JSON."""
    plain = {"format": FORMAT, **settings._asdict()}
    for name in ("thresholds", "portion"):
        value = plain[name]
        if isinstance(value, Tensor):  # JSON has no infinity
            value = ["inf" if v == math.inf else float(v) for v in value]
        plain[name] = value
    content: dict[str, Any] = json.loads(json.dumps(plain))  # tuples become lists, as when read
    return content


def from_content(content: Mapping[str, Any], names: tuple[str, ...]) -> RoundSettings:
    def values(value: Any) -> Any:
        return torch.tensor([float(v) for v in value], dtype=torch.float64) if isinstance(value, list) else value

    classes = content["classes"]
    return RoundSettings(
        round=content["round"],
        names=names,
        thresholds=values(content["thresholds"]),
        portion=values(content["portion"]),
        meta=dict(content["meta"]),
        num_classes=content["num_classes"],
        ignore_index=content["ignore_index"],
        classes=None if classes is None else tuple(classes),
        palette=tuple((red, green, blue) for red, green, blue in content["palette"]),
        keep=tuple(content["keep"]),
        top_k=content["top_k"],
    )


def check_same(asked: dict[str, Any], found: dict[str, Any], where: str) -> None:
    """Check that all settings except ``meta`` are those that the round was started with."""
    for name in ("num_classes", *asked):
        value = asked[name]
        if name == "meta" or found.get(name) == value:
            continue
        if isinstance(value, list) and isinstance(found.get(name), list):
            pairs = zip(value, found[name], strict=False)
            place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
            if place is None:
                got = f"{len(value)} instead of {len(found[name])}"
            else:
                got = f"{value[place]!r} instead of {found[name][place]!r} at place {place}"
        else:
            got = f"{_short(value)} instead of {_short(found.get(name))}"
        raise ValueError(
            f"`{name}`: expected the setting that {where} was started with, got {got}; overwrite=True restarts it"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def checked_thresholds(thresholds: Any, num_classes: int) -> Tensor | None:
    """Return thresholds as (C,) float64 on the CPU."""
    if thresholds is None:
        return None
    _checks.check_tensor(thresholds, "thresholds")
    values = _checks.thresholds_for(thresholds.detach(), torch.empty(0, num_classes, 0, 0)).to("cpu", torch.float64)
    wrong = ~(values >= 0)  # infinity is valid: it selects nothing of a class
    if bool(wrong.any()):
        raise ValueError(f"`thresholds`: expected values of at least 0, got {float(values[wrong][0])}")
    return values.clone()


def checked_portion(portion: Any, num_classes: int) -> float | Tensor | None:
    """Return a portion in [0, 1] as a float, or (C,) with one per class."""
    if portion is None:
        return None
    if not isinstance(portion, Tensor):
        _checks.check_real(portion, "portion", 0.0, 1.0)
        return float(portion)
    if portion.ndim == 0:
        return checked_portion(float(portion), num_classes)
    if tuple(portion.shape) != (num_classes,):
        raise ValueError(f"`portion`: expected a number or (C,) = ({num_classes},), got {tuple(portion.shape)}")
    values = portion.detach().to("cpu", torch.float64)
    wrong = ~((values >= 0) & (values <= 1))
    if bool(wrong.any()):
        raise ValueError(f"`portion`: expected values in [0, 1], got {float(values[wrong][0])}")
    return values.clone()


def checked_meta(meta: Any) -> dict[str, Any]:
    """Return the metadata as JSON reads it back."""
    if meta is None:
        return {}
    if not isinstance(meta, Mapping):
        raise TypeError(f"`meta`: expected a dict, got {type(meta).__name__}")
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(meta), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`meta`: expected values that JSON supports, got {_short(meta)} ({error})") from error
    return plain


def check_store(num_classes: Any, classes: Any, ignore_index: Any, keep: Any) -> None:
    """Check the settings of a store."""
    _checks.check_count(num_classes, "num_classes")
    if num_classes > 255:
        raise ValueError(f"`num_classes`: expected at most 255 (labels are 8 bits), got {num_classes}")
    _checks.check_ignore_index(ignore_index, num_classes, minimum=0)
    if ignore_index > 255:
        raise ValueError(f"`ignore_index`: expected a value in [0, 255] (labels are 8 bits), got {ignore_index}")
    if classes is not None and (isinstance(classes, str) or len(classes) != num_classes):
        raise ValueError(f"`classes`: expected {num_classes} names, got {classes!r}")
    if isinstance(keep, str) or not set(keep) <= set(KINDS) or len(set(keep)) < len(keep):
        raise ValueError(f"`keep`: expected some of {', '.join(map(repr, KINDS))}, got {keep!r}")
