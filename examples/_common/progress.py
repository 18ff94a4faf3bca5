"""Progress: a bar in a terminal, a line every half minute elsewhere; and the memory of the process."""

from __future__ import annotations

import io
import sys
from typing import Any

from tqdm import tqdm

SECONDS = 30  # between lines


class _Lines(tqdm):  # type: ignore[type-arg]
    """Prints lines in place of a bar, for log files."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Print a line. tqdm passes ``msg`` only to erase a bar."""
        if msg is None:
            print(str(self), flush=True)
        return True


def progress(iterable: Any = None, what: str = "", total: int | None = None, **settings: Any) -> Any:
    """Show the progress of a loop; arguments as for tqdm. Pass ``disable=True`` on all processes but the first."""
    if sys.stderr.isatty():
        return tqdm(iterable, what, total, leave=False, **settings)
    lines = {"delay": SECONDS, "mininterval": SECONDS, "maxinterval": SECONDS, "miniters": 1, "file": io.StringIO()}
    return _Lines(iterable, what, total, leave=False, ncols=0, **{**settings, **lines})


def peak_resident() -> float:
    """Return the peak memory of this process in bytes; NaN on Windows."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
