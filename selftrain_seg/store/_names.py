"""Image names and the paths of their files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

SUFFIX = ".png"

# Characters that some file systems reject, and the escape character itself; all others are kept.
_ESCAPED = re.compile(r'[%\x00-\x1f\x7f\\:*?"<>|]')
_LONGEST = 255  # bytes of one part of a path, on every common file system


def file_of(kind: str, name: str) -> str:
    """Path of a file relative to the folder of its round; different names have different paths."""
    return f"{kind}/{_ESCAPED.sub(lambda found: f'%{ord(found[0]):02X}', name)}{SUFFIX}"


def checked_names(names: Iterable[str]) -> tuple[str, ...]:
    """Check the names of a round: at least one, all valid as file names, without conflicts."""
    if isinstance(names, (str, bytes)):
        raise TypeError(f"`names`: expected several names, got one {type(names).__name__}")
    found = tuple(names)
    for name in found:
        _check_name(name)
    if not found:
        raise ValueError("`names`: expected at least one name, got none")
    files: set[str] = set()
    folders: set[str] = set()
    for name in found:
        path = file_of("labels", name)
        if path in files:
            raise ValueError(f"`names`: expected different names, got {name!r} twice")
        files.add(path)
        folders.update(str(parent) for parent in PurePosixPath(path).parents)
    for name in found:
        if file_of("labels", name) in folders:
            raise ValueError(f"`names`: expected no folder {name + SUFFIX!r} beside the image {name!r}, got both")
    return found


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"`names`: expected str, got {type(name).__name__}")
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"`names`: expected relative paths with no part empty, '.' or '..', got {name!r}")
    try:
        longest = max(len(part.encode()) for part in file_of("", name)[1:].split("/"))
    except UnicodeEncodeError as error:
        raise ValueError(f"`names`: expected Unicode text, got {name!r}") from error
    if longest > _LONGEST:
        raise ValueError(f"`names`: expected parts of at most {_LONGEST} bytes, got {longest} in {name!r}")
