"""Files that are either complete or not there, and digests that tell one version of code or data from another."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

import selftrain_seg


def save_atomically(content: Any, path: Path) -> None:
    """Write a file of ``torch.save``: under a temporary name, on the disk, then renamed."""
    _put(path, lambda file: torch.save(content, file))


def save_json(content: Any, path: Path, *, default: Callable[[Any], Any] | None = None) -> None:
    """The same for JSON, which has no NaN: it becomes null. ``default`` turns into JSON what is not."""
    text = json.dumps(_without_nan(content), indent=1, default=default, allow_nan=False) + "\n"
    _put(path, lambda file: file.write(text.encode()))


def sync_folder(folder: Path) -> None:
    """Bring the files of a folder to the disk."""
    for path in folder.rglob("*"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())


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
    examples = Path(__file__).parents[1]
    code = [path for folder in examples.glob("_*") for path in folder.rglob("*.py")]
    code += Path(selftrain_seg.__file__).parent.rglob("*.py")
    return digest_of([*sorted(code), *files], torch.__version__)


def digest_of(files: Iterable[Path], *words: str) -> str:
    """Eight letters that change with what is in some files, and with some words."""
    digest = hashlib.sha256("\0".join(words).encode())
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:8]
