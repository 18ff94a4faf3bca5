"""How far something is: a bar in a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import io
import sys
import time
from typing import Any

from tqdm import tqdm

SECONDS = 30  # between lines


class _Lines(tqdm):  # type: ignore[type-arg]
    """Prints lines in place of a bar, for log files."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{**settings, "mininterval": 1, "file": io.StringIO(), "ncols": 0})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Print where it is, half a minute after the start or after the last time."""
        now = time.monotonic()
        if msg is None and now - getattr(self, "printed", now) >= SECONDS:
            print(str(self), flush=True)
            self.printed = now
        self.printed = getattr(self, "printed", now)
        return True


def progress(iterable: Any = None, what: str = "", total: int | None = None, **settings: Any) -> Any:
    """Show how far a loop is; the arguments are those of tqdm. ``disable=True`` on all processes but the first."""
    bar = tqdm if sys.stderr.isatty() else _Lines
    return bar(iterable, what, total, leave=False, **settings)
