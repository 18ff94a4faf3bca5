"""Inputs of the operators: dtypes, layouts, and what else they take, with unusable pixels where they may be."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch
from torch import Tensor

from tests.helpers import layouts, random_logits

CLASSES, SIZE = 5, (6, 7)
KINDS = pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16", "float64", "channels_last", "strided"])
CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


def logits_of(kind: str, batch: int = 2, seed: int = 0, size: tuple[int, int] = SIZE) -> Tensor:
    logits = random_logits(batch, CLASSES, *size, seed=seed)
    return layouts(logits)[kind] if kind in ("channels_last", "strided") else logits.to(getattr(torch, kind))


def valid_of(batch: int = 2, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.rand(batch, *size, generator=torch.Generator().manual_seed(5)) < 0.7


def prior_of(size: tuple[int, int] = SIZE) -> Tensor:
    return 0.2 + 2 * torch.rand(CLASSES, *size, generator=torch.Generator().manual_seed(6))


def thresholds_of() -> Tensor:
    return torch.tensor([0.9, 0.35, 0.6, 0.2, 0.75], dtype=torch.float64)


def op_module(name: str) -> ModuleType:
    """A module of ``ops``; there, attributes of the same names are functions."""
    return importlib.import_module(f"selftrain_seg.ops.{name}")


def as_on_a_gpu(monkeypatch) -> None:
    """Take the branches that other devices take, on the CPU."""
    for name in ("_blocks", "_winner", "counts", "loss", "soft_labels"):
        if hasattr(op_module(name), "on_cpu"):
            monkeypatch.setattr(op_module(name), "on_cpu", lambda _: False)
