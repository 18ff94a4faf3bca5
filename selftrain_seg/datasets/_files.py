"""List the files of a folder. Suffixes match in any case, and every error names the folder or file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
_SHOWN = 5


def list_files(folder: Path, *endings: str, left_out: list[tuple[Path, str]] | None = None) -> dict[str, Path]:
    """Map name without ending -> path, sorted, for the files in ``folder`` that end in one of ``endings``.

    Endings match in any case. Hidden files are skipped; other files are added to ``left_out``.
    """
    found: dict[str, Path] = {}
    for entry in scan_folder(folder, "root"):
        if entry.name.startswith("."):
            continue
        ending = next((ending for ending in endings if entry.name.lower().endswith(ending.lower())), None)
        if ending is None:
            if left_out is not None:
                left_out.append((folder / entry.name, f"does not end in {' or '.join(endings)}"))
            continue
        name = entry.name[: -len(ending)]
        if name in found:
            raise ValueError(duplicate_message("root", name, found[name], folder / entry.name))
        found[name] = folder / entry.name
    return dict(sorted(found.items()))


def list_folders(folder: Path) -> list[str]:
    """Sorted names of the folders in ``folder``, without hidden ones."""
    return sorted(
        entry.name for entry in scan_folder(folder, "root") if entry.is_dir() and not entry.name.startswith(".")
    )


def list_tree(folder: Path, argument: str) -> list[str]:
    """Sorted paths of all files below ``folder``, relative to it and separated by ``/``, without hidden ones.

    Links are followed.

    Raises:
        FileNotFoundError: ``folder`` is not a folder.
        ValueError: a link leads to a folder that contains it.
    """
    found: list[str] = []
    waiting: list[tuple[Path, str, frozenset[tuple[int, int]]]] = [(folder, "", frozenset())]
    while waiting:
        place, prefix, around = waiting.pop()
        inside = scan_folder(place, argument)
        status = os.stat(place)
        around |= {(status.st_dev, status.st_ino)}
        for entry in inside:
            if entry.name.startswith("."):
                continue
            try:
                if not entry.is_dir():
                    found.append(prefix + entry.name)
                    continue
                status = os.stat(entry.path)
            except OSError as error:  # such as a link to itself
                raise ValueError(f"`{argument}`: {entry.path}: {error.strerror}; remove the link") from error
            if (status.st_dev, status.st_ino) in around:
                raise ValueError(
                    f"`{argument}`: {entry.path} is a link to a folder that contains it; remove the link,"
                    " or pass the folder that you mean"
                )
            waiting.append((place / entry.name, f"{prefix}{entry.name}/", around))
    return sorted(found)


def scan_folder(folder: Path, argument: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"`{argument}`: expected a folder {folder}, found none") from error


def duplicate_message(argument: str, name: str, first: Path, second: Path) -> str:
    return f"`{argument}`: expected one file named {name!r}, got two: {first} and {second}; remove one"


def first_few(items: Iterable[object], separator: str = ", ") -> str:
    """The first few items, separated, and "..." if there are more."""
    listed = [str(item) for item in items]
    return separator.join(listed[:_SHOWN]) + (f"{separator}..." if len(listed) > _SHOWN else "")


def check_not_empty(names: Sequence[str] | Mapping[str, object], folder: Path, what: str) -> None:
    if not names:
        raise FileNotFoundError(f"`root`: expected {what} in {folder}, found none")


def check_present(wanted: Mapping[str, Path], present: Mapping[str, Path]) -> None:
    """Check that no ``wanted`` file is missing, by name."""
    missing = [path for name, path in wanted.items() if name not in present]
    if missing:
        raise FileNotFoundError(f"`root`: {len(missing)} of {len(wanted)} files are missing: {first_few(missing)}")
