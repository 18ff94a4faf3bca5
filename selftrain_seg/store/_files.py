"""Atomic file writes and checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from selftrain_seg.store._names import file_of

FORMAT = 2
MANIFEST = "manifest.json"
SETTINGS = "settings.json"
IMAGES = "images.jsonl"
JOURNAL = "journal"  # folder of the records of images written so far, one file per process
PARTIAL = ".partial"  # folder of unfinished files

T = TypeVar("T")
R = TypeVar("R")


class Record(NamedTuple):
    """The record of one image: a line of the journal and of ``images.jsonl``."""

    name: str
    size: tuple[int, int]
    counts: list[int]
    predicted: list[int] | None
    dropped: tuple[int, int] | None
    files: dict[str, tuple[int, str]]  # kind -> bytes, SHA-256

    def line(self) -> bytes:
        return json.dumps(self._asdict(), separators=(",", ":")).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Record | None:
        """Parse a line; None for an incomplete line left by a killed process."""
        try:
            record = cls(**json.loads(line))
            files = {kind: (int(size), str(digest)) for kind, (size, digest) in record.files.items()}
            height, width = record.size
            lost = None if record.dropped is None else (record.dropped[0], record.dropped[1])
            return record._replace(name=str(record.name), size=(height, width), dropped=lost, files=files)
        except (ValueError, TypeError, AttributeError, LookupError):
            return None


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write(path: Path, data: bytes, round_folder: Path, *, sync: bool = False, replace: bool = True) -> None:
    """Write a file atomically; without ``replace`` keep an existing file."""
    unfinished = round_folder / PARTIAL / uuid.uuid4().hex
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with unfinished.open("xb") as file:
            file.write(data)
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


def _linked(source: Path, target: Path) -> bool:
    """Link the target to the source unless it exists; False if the file system has no hard links."""
    try:
        os.link(source, target)
    except FileExistsError:
        return True
    except OSError:
        return target.exists()
    return True


def to_json(content: dict[str, Any]) -> bytes:
    """Indented JSON whose last entry is the checksum of the others. Floats round-trip exactly."""
    plain = json.dumps(content, allow_nan=False, sort_keys=True).encode()
    return (json.dumps({**content, "checksum": digest(plain)}, allow_nan=False, indent=1) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """Read a file made by :func:`to_json`; OSError names the file if it is damaged."""
    data = path.read_bytes()
    try:
        content = json.loads(data)
        del content["checksum"]
        whole = data == to_json(content)
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        raise OSError(f"{path}: damaged file, expected JSON") from error
    if not whole:
        raise OSError(f"{path}: damaged file, its checksum does not match")
    if content["format"] != FORMAT:
        raise OSError(f"{path}: format {content['format']}, this version reads {FORMAT}")
    return dict(content)


def records(folder: Path) -> dict[str, list[Record]]:
    """The distinct records of each image, from the list of the round and from all journals."""
    found: dict[str, list[Record]] = {}
    for path in [folder / IMAGES, *sorted((folder / JOURNAL).glob("*.jsonl"))]:
        for line in path.read_bytes().split(b"\n") if path.exists() else ():
            record = Record.parse(line) if line else None
            if record is not None and record not in found.setdefault(record.name, []):
                found[record.name].append(record)
    return found


def damaged(folder: Path, record: Record) -> list[str]:
    """The files of the record that are missing or damaged, relative to the folder."""
    out = []
    for kind, (_, expected) in record.files.items():
        path = file_of(kind, record.name)
        try:
            whole = digest((folder / path).read_bytes()) == expected
        except OSError:
            whole = False
        if not whole:
            out.append(path)
    return out


def same_sizes(folder: Path, record: Record) -> bool:
    """Compare sizes only, which is enough for files written in this run."""
    try:
        return all(
            (folder / file_of(kind, record.name)).stat().st_size == size for kind, (size, _) in record.files.items()
        )
    except OSError:
        return False


def threaded_map(
    function: Callable[[T], R], items: Iterable[T], total: int, threads: int, progress: bool, what: str
) -> Iterator[R]:
    """``map`` on several threads, with a progress bar if ``progress`` and tqdm is installed."""
    with ThreadPoolExecutor(max(1, threads)) as pool:
        results: Iterator[R] = pool.map(function, items)
        if progress:
            with contextlib.suppress(ModuleNotFoundError):  # tqdm is optional
                results = iter(importlib.import_module("tqdm").tqdm(results, total=total, desc=what, unit="image"))
        yield from results
