"""Files that are either complete or not there, and digests that tell one version of code or data from another."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

import selftrain_seg

_NO_JSON = {"NaN": None, "Infinity": "inf", "-Infinity": "-inf"}


def save_atomically(content: Any, path: Path) -> None:
    """Write a file of ``torch.save``: under a temporary name, on the disk, then renamed."""
    _put(path, lambda file: torch.save(content, file))


def save_json(content: Any, path: Path, *, default: Callable[[Any], Any] | None = None) -> None:
    """The same for JSON, which has no NaN: it becomes null. ``default`` turns into JSON what is not."""
    plain = json.loads(json.dumps(content, default=default), parse_constant=_NO_JSON.get)
    _put(path, lambda file: file.write(json.dumps(plain, indent=1).encode() + b"\n"))


def save_text(text: str, path: Path) -> None:
    """Write a file of text, complete or not at all."""
    _put(path, lambda file: file.write(text.encode()))


def pending(path: Path, place: str) -> Path:
    """Name of weights of a place until a record says that they are kept: ``.kept-round-2.pt`` for ``kept.pt``."""
    return path.with_name(f".{path.stem}-{re.sub(r'[^a-z0-9]+', '-', place.lower())}{path.suffix}")


def settle(path: Path, kept: str | None) -> None:
    """Give pending weights their name if the record says that their place is kept; remove all others.

    Weights are written as pending, then the record, then this renames them. A run that is killed in between calls this
    before it writes anything, so the weights are always those that the record is about.

    Args:
        path: of the weights, such as ``kept.pt``.
        kept: the place in the record; None if there is none.
    """
    for waiting in path.parent.glob(f".{path.stem}-*"):
        if kept is not None and waiting == pending(path, kept):
            waiting.replace(path)
        else:
            waiting.unlink()


def _put(path: Path, write: Callable[[Any], Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


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
