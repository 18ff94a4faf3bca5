"""Write files that are complete or absent; compute digests of code and data."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import selftrain_seg

_NO_JSON = {"NaN": None, "Infinity": "inf", "-Infinity": "-inf"}


def save_atomically(content: Any, path: Path) -> None:
    """Save with ``torch.save`` to a file that is complete or absent."""
    _put(path, lambda file: torch.save(content, file))


def save_json(content: Any, path: Path, *, default: Callable[[Any], Any] | None = None) -> None:
    """Write JSON to a file that is complete or absent. NaN becomes null; ``default`` converts other types."""
    plain = json.loads(json.dumps(content, default=default), parse_constant=_NO_JSON.get)
    _put(path, lambda file: file.write(json.dumps(plain, indent=1).encode() + b"\n"))


def save_text(text: str, path: Path) -> None:
    """Write text to a file that is complete or absent."""
    _put(path, lambda file: file.write(text.encode()))


def save_weights(net: nn.Module, path: Path) -> None:
    """Write a network's weights, on the CPU."""
    save_atomically({name: tensor.cpu() for name, tensor in net.state_dict().items()}, path)


def save_picture(picture: Any, path: Path, **options: Any) -> None:
    """Write a Pillow image or a Matplotlib figure to a file that is complete or absent.

    ``options`` are passed to its ``save`` or ``savefig``.
    """
    save = picture.savefig if hasattr(picture, "savefig") else picture.save
    _put(path, lambda file: save(file, format={".jpg": "jpeg"}.get(path.suffix, path.suffix[1:]), **options))


def _put(path: Path, write: Callable[[Any], Any]) -> None:
    """Write under a temporary name, sync to the disk, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def code_digest(*files: Path) -> str:
    """Return a digest of the code of the package, of the folders that the examples share, and of these files.

    Files that later runs reuse have it in their names, so other versions of the code do not read them.
    """
    examples = Path(__file__).parents[1]
    code = [path for folder in examples.glob("_*") for path in folder.rglob("*.py")]
    code += Path(selftrain_seg.__file__).parent.rglob("*.py")
    return digest_of([*sorted(code), *files], torch.__version__)


def digest_of(files: Iterable[Path], *strings: str) -> str:
    """Return eight hexadecimal digits that depend on the content of files, and on strings."""
    digest = hashlib.sha256("\0".join(strings).encode())
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:8]
