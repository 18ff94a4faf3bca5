"""What the studies of the documentation share: tables, and results that are kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, with a head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join((lines[0], "|---" * len(rows[0]) + "|", *lines[1:]))


def kept(path: Path, measure: Callable[[], Any]) -> Any:
    """What an earlier run measured, or measure it now."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(measure(), indent=1), encoding="utf-8")
        temporary.replace(path)
    return json.loads(path.read_text(encoding="utf-8"))
