"""The synthetic benchmark in memory, generated once and cached on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from _common.files import save_atomically
from _common.loading import as_floats
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from selftrain_seg.datasets import SyntheticStreets


class Splits(NamedTuple):
    """Labelled source images, target images, and target images to validate on."""

    source: TensorDataset
    target: TensorDataset
    val: TensorDataset


def open_splits(lengths: Sequence[int], seed: int, cache: Path, device: str) -> Splits:
    """Open the source, target and validation images, as many as ``lengths`` says."""
    names = (("source", "train"), ("target", "train"), ("target", "val"))
    return Splits(*(streets(*name, length, seed, cache, device) for name, length in zip(names, lengths, strict=True)))


def streets(domain: str, split: str, length: int, seed: int, cache: Path, device: str) -> TensorDataset:
    """Return ``SyntheticStreets`` as uint8 tensors on a device: images (N, 3, H, W) and labels (N, H, W)."""
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


def batches(dataset: TensorDataset, size: int = 50) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all images, float32, and labels, int64, in order."""
    for images, labels in zip(*(tensor.split(size) for tensor in dataset.tensors), strict=True):
        yield as_floats(images), labels.long()


def draw(dataset: TensorDataset, size: int, generator: torch.Generator) -> Tensor:
    """Draw the indices of a random batch, with replacement."""
    drawn = torch.randint(len(dataset), (size,), generator=generator)
    return drawn.to(dataset.tensors[0].device, non_blocking=True)
