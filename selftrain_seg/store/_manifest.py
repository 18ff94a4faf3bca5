"""The manifest of a complete round."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

from selftrain_seg.store._files import IMAGES, SETTINGS, Record, digest
from selftrain_seg.store._settings import RoundSettings, to_content
from selftrain_seg.store.soft import MILLION


def manifest_of(folder: Path, settings: RoundSettings, records: list[Record]) -> dict[str, Any]:
    """Settings, versions, counts, shares and bytes of a round, and the checksums of its other lists."""
    content = to_content(settings)
    del content["names"]  # in the list of the images
    selected = _summed([record.counts for record in records])
    predicted = None
    if records[0].predicted is not None:
        predicted = _summed([record.predicted for record in records if record.predicted is not None])
    pixels = sum(record.size[0] * record.size[1] for record in records)
    sizes = {kind: sum(record.files[kind][0] for record in records) for kind in records[0].files}
    lost = [record.dropped for record in records if record.dropped is not None]
    dropped = None
    if lost:
        dropped = {
            "mean": sum(total for total, _ in lost) / MILLION / max(1, sum(selected)),
            "max": max(largest for _, largest in lost) / MILLION,
        }
    return {
        **content,
        "complete": True,
        "versions": {"selftrain_seg": _version(), "torch": torch.__version__, "pillow": PIL.__version__},
        "images": len(records),
        "pixels": pixels,
        "selected": selected,
        "predicted": predicted,
        "selected_share": sum(selected) / pixels,
        "class_shares": [count / pixels for count in selected],
        "soft_dropped": dropped,
        "bytes": sizes,
        "bytes_per_image": sum(sizes.values()) / len(records),
        "files": {name: _size_and_digest(folder / name) for name in (SETTINGS, IMAGES)},
    }


def listed(names: Iterable[str] | None) -> str:
    """Format names as ``, 'a', 'b'`` for a message."""
    return "".join(f", {name!r}" for name in names or ())


def _summed(rows: list[list[int]]) -> list[int]:
    return [int(count) for count in np.array(rows, np.int64).sum(0)]


def _size_and_digest(path: Path) -> list[int | str]:
    data = path.read_bytes()
    return [len(data), digest(data)]


def _version() -> str:
    try:
        return importlib.metadata.version("selftrain-seg")
    except importlib.metadata.PackageNotFoundError:  # not installed
        return "unknown"
