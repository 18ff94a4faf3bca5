"""Files that are written whole or not at all. No other module renames files or waits for the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(
    path: Path, *, unfinished_in: Path | None = None, sync: bool = True, replace: bool = True
) -> Iterator[BinaryIO]:
    """Open a file for writing in binary that appears at ``path`` when the block ends, and not at all if it fails.

    Args:
        path: missing folders are created.
        unfinished_in: folder of the unfinished file, on the same disk; by default that of ``path``, where the file's
            name begins with a dot and ends with ``.tmp``.
        sync: wait until the file would survive a power failure. False for files that are synced later or easily remade.
        replace: replace a file that exists. False leaves it as it is.
    """
    folder = path.parent if unfinished_in is None else unfinished_in
    for needed in (folder, path.parent):
        needed.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{path.name[:48]}.{uuid.uuid4().hex}.tmp"  # short enough, whatever the bytes of the name
    try:
        with unfinished.open("xb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        if replace or not _linked(unfinished, path):
            unfinished.replace(path)
        if sync:
            sync_to_disk(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def sync_to_disk(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk, so that it survives a power failure."""
    if os.name == "nt" and path.is_dir():  # folders cannot be opened on Windows
        return
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(fd)
        except OSError as error:  # some file systems cannot flush folders
            if not (path.is_dir() and error.errno in (errno.EINVAL, errno.EBADF, errno.ENOTSUP)):
                raise
        finally:
            os.close(fd)


def move_away(folder: Path, prefix: str) -> None:
    """Rename a folder to a name that begins with ``prefix``, so that all of it disappears at once."""
    folder.rename(folder.with_name(f"{prefix}{uuid.uuid4().hex}"))


def _linked(source: Path, target: Path) -> bool:
    """Link the target to the source unless it exists; False if the file system has no hard links."""
    try:
        os.link(source, target)
    except FileExistsError:
        return True
    except OSError:
        return target.exists()
    return True
