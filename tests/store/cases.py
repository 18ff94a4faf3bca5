"""Pseudo-labels that are a function of the image's name, and a look at all the bytes of a folder."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import torch

from selftrain_seg import PseudoLabels
from selftrain_seg.store import PseudoLabelStore
from selftrain_seg.store._lock import LOCKS

CLASSES = 5
NAMES = [f"town_{i % 3}/image {i}" for i in range(12)]
THRESHOLDS = torch.tensor([1.0, 1.0 - 2.0**-53, 0.1, 1e-300, torch.inf], dtype=torch.float64)


def pseudo(name: str, height: int = 9, width: int = 13) -> PseudoLabels:
    """A batch of one with every field."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    soft = torch.rand(1, CLASSES, height, width, generator=generator).pow(6)
    soft = soft / soft.sum(1, keepdim=True)
    confidence, predicted = soft.max(1)
    selected = confidence > 0.5
    labels = torch.where(selected, predicted, 255)
    weight = torch.rand(1, height, width, generator=generator)
    return PseudoLabels(labels, confidence, soft * selected.unsqueeze(1), weight, predicted)


def joined(names: list[str]) -> PseudoLabels:
    return PseudoLabels(*(torch.cat(parts) for parts in zip(*map(pseudo, names), strict=True)))


def open_store(root: Path, **options) -> PseudoLabelStore:
    return PseudoLabelStore(root, CLASSES, **{"threads": 2, **options})


def write_all(root: Path, number: int = 0, names: list[str] = NAMES, batch: int = 4, **options):
    writer = open_store(root, **options).write(number, names, thresholds=THRESHOLDS, portion=0.2)
    with writer:
        missing = writer.missing()
        for start in range(0, len(missing), batch):
            writer.add(missing[start : start + batch], joined(missing[start : start + batch]))
        return writer.finish()


def tree(root: Path) -> dict[str, str]:
    """Every file under a folder, hidden ones too but for (empty) locks, and a digest of its bytes."""
    files = (path for path in Path(root).rglob("*") if path.is_file() and path.parent.name != LOCKS)
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
