"""How far something is: a bar in a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import io
import sys
from typing import Any

from tqdm import tqdm

SECONDS = 30  # between lines


class _Lines(tqdm):  # type: ignore[type-arg]
    """Prints lines in place of a bar, for log files."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Print where it is; ``msg`` is what erases a bar."""
        if msg is None:
            print(str(self), flush=True)
        return True


def progress(iterable: Any = None, what: str = "", total: int | None = None, **settings: Any) -> Any:
    """Show how far a loop is; the arguments are those of tqdm. ``disable=True`` on all processes but the first."""
    if sys.stderr.isatty():
        return tqdm(iterable, what, total, leave=False, **settings)
    lines = {"delay": SECONDS, "mininterval": SECONDS, "maxinterval": SECONDS, "miniters": 1, "file": io.StringIO()}
    return _Lines(iterable, what, total, leave=False, ncols=0, **{**settings, **lines})


def peak_resident() -> float:
    """Return the most memory that this process has used, in bytes; NaN where it is unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
