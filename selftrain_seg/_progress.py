"""Show a progress bar if tqdm is installed."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def with_progress(
    items: Iterable[T], total: int | None, progress: bool, unit: str, title: str | None = None
) -> Iterator[T]:
    """Iterate with a bar on stderr if ``progress`` is set and tqdm is installed, else without."""
    if progress:
        try:
            tqdm = importlib.import_module("tqdm").tqdm
        except ImportError:  # optional dependency
            return iter(items)
        return iter(tqdm(items, total=total, desc=title, unit=unit))
    return iter(items)
