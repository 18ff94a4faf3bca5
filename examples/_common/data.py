"""The embedded benchmark in memory, generated once and cached on disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

import selftrain_seg
from selftrain_seg.datasets import SyntheticStreets


def save_atomically(content: Any, path: Path) -> None:
    """Write a file that is either complete or not there: under a temporary name, on the disk, then renamed."""
    _put(path, lambda file: torch.save(content, file))


def save_json(content: Any, path: Path, *, default: Callable[[Any], Any] | None = None) -> None:
    """The same for JSON, which has no NaN: it becomes null. ``default`` turns into JSON what is not."""
    text = json.dumps(_without_nan(content), indent=1, default=default, allow_nan=False) + "\n"
    _put(path, lambda file: file.write(text.encode()))


def _put(path: Path, write: Callable[[Any], Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None if math.isnan(content) else str(content)
    return content


def code_digest(*files: Path) -> str:
    """Eight letters that change with the code: of the package, of what the examples share, and of these files.

    What is kept for later runs carries them in its name, so that other code never reads it.
    """
    folders = (Path(selftrain_seg.__file__).parent, Path(__file__).parent)
    code = sorted(path for folder in folders for path in folder.rglob("*.py"))
    return digest_of([*code, *files], torch.__version__)


def digest_of(files: Iterable[Path], *words: str) -> str:
    """Eight letters that change with what is in some files, and with some words."""
    digest = hashlib.sha256("\0".join(words).encode())
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:8]


def streets(domain: str, split: str, length: int, seed: int, cache: Path, device: torch.device) -> TensorDataset:
    """Return ``SyntheticStreets`` as a dataset of tensors on a device: images uint8, labels uint8."""
    path = cache / f"streets-{domain}-{split}-{length}-seed{seed}.pt"
    if not path.exists():
        dataset = SyntheticStreets(domain=domain, split=split, length=length, seed=seed)
        loader = DataLoader(dataset, batch_size=25, num_workers=min(2, os.cpu_count() or 1))
        parts = []
        for images, labels in tqdm(loader, desc=f"drawing {domain} {split}", unit="batch", leave=False, disable=None):
            parts.append(((images * 255).round().byte(), labels.byte()))
        images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        save_atomically({"images": images, "labels": labels}, path)
    saved = torch.load(path, weights_only=True)
    return TensorDataset(saved["images"].to(device), saved["labels"].to(device))


def as_floats(images: Tensor) -> Tensor:
    """Convert uint8 images to float32 in [0, 1], channels last."""
    return (images.float() / 255).contiguous(memory_format=torch.channels_last)


def batches(dataset: TensorDataset, size: int = 50) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images float32, labels int64) of the whole set in order."""
    for images, labels in zip(*(tensor.split(size) for tensor in dataset.tensors), strict=True):
        yield as_floats(images), labels.long()


def draw(dataset: TensorDataset, size: int, generator: torch.Generator) -> Tensor:
    """Draw the indices of a random batch."""
    return torch.randint(len(dataset), (size,), generator=generator).to(dataset.tensors[0].device)
