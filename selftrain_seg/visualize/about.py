"""Record the origin of a run (command, versions, date and machine) and its progress."""

from __future__ import annotations

import importlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from selftrain_seg import _checks
from selftrain_seg.visualize.records import write

__all__ = ["record_about", "record_progress"]

ABOUT, PROGRESS = "about.json", "progress.json"


def record_about(run_dir: str | os.PathLike[str], *, command: str | Sequence[str] | None = None) -> Path:
    """Record the command, date, versions and machine of a run, for :func:`report`.

    Call it once at the start of a run, in one process. If the file exists, the run was resumed: its content is kept,
    and the date of this call is added to ``resumed``.

    Args:
        run_dir: folder of the run; created if it does not exist.
        command: the command line, as text or as a list of words; None for that of this process. The report shows it,
            so leave out passwords and tokens.

    Returns:
        Path of the file ``about.json``, with ``command``, ``started`` and ``resumed`` (dates in UTC, ISO 8601),
        ``versions``, ``machine`` (system, CPU cores and GPU, but not its name) and ``processes``.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> import json, tempfile
        >>> from selftrain_seg.visualize import record_about
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = record_about(folder, command=["python", "train.py", "--name", "my run"])
        ...     json.loads(file.read_text())["command"]
        "python train.py --name 'my run'"
    """
    path = Path(run_dir) / ABOUT
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["resumed"] = [*content.get("resumed", []), _now()]
    except (OSError, ValueError, TypeError, AttributeError):  # no file, or a damaged one
        words = [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]] if command is None else command
        content = {
            "command": words if isinstance(words, str) else shlex.join(words),
            "started": _now(),
            "resumed": [],
            "versions": {
                "selftrain_seg": importlib.import_module("selftrain_seg").__version__,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
            },
            "machine": _machine(),
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
        }
    write(path, _as_json(content))
    return path


def record_progress(run_dir: str | os.PathLike[str], done: int, total: int, *, stage: str = "") -> Path:
    """Record the progress of a run for :func:`report`. Call it from time to time, in one process.

    Until ``done`` reaches ``total`` or ``result.json`` exists, the report shows that the run is in progress, how far it
    is, and when it last wrote.

    Args:
        run_dir: folder of the run; created if it does not exist.
        done: number of steps, rounds or images completed.
        total: number of steps, rounds or images to complete.
        stage: what is counted, such as ``"round 2, training steps"``.

    Returns:
        Path of the file ``progress.json``, which also holds the date of the call. An existing file is replaced.

    Raises:
        TypeError: ``done`` or ``total`` is not an int.
        ValueError: ``total`` is below 1, or ``done`` is not in [0, ``total``].
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> from selftrain_seg.visualize import record_progress, report
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = record_progress(folder, 250, 1000, stage="round 2, training steps")
        ...     "250 of 1,000" in report(folder).read_text()
        True
    """
    _checks.check_count(total, "total")
    _checks.check_count(done, "done", minimum=0)
    if done > total:
        raise ValueError(f"`done`: expected at most `total` = {total}, got {done}")
    path = Path(run_dir) / PROGRESS
    content = {"stage": str(stage), "done": int(done), "total": int(total), "date": _now()}
    write(path, _as_json(content), sync=False)  # written often, and soon out of date
    return path


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _machine() -> str:
    parts = [f"{platform.system()} {platform.machine()}", f"{os.cpu_count()} CPU cores"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def _as_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace")
