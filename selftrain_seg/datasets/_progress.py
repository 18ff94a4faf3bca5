"""Show a progress bar if tqdm is installed."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def with_progress(items: Iterable[T], count: int, progress: bool, unit: str) -> Iterator[T]:
    if progress:
        try:
            tqdm = importlib.import_module("tqdm").tqdm
        except ModuleNotFoundError:  # optional dependency
            return iter(items)
        return iter(tqdm(items, total=count, unit=unit))
    return iter(items)
