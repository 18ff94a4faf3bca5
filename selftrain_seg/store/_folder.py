"""Start, remove and verify the folder of a round."""

from __future__ import annotations

import re
import shutil
import uuid
from pathlib import Path
from typing import Any

from selftrain_seg.store import _files
from selftrain_seg.store._files import IMAGES, MANIFEST, SETTINGS, Record

_DELETED = ".deleted-"


def remove(folder: Path) -> None:
    """Remove a round atomically: rename its folder, then delete it. Leftovers of earlier removals are deleted too."""
    if folder.exists():
        folder.rename(folder.with_name(f"{_DELETED}{uuid.uuid4().hex}"))
    for leftover in folder.parent.glob(f"{_DELETED}*"):
        shutil.rmtree(leftover)


def start_round(folder: Path, asked: dict[str, Any]) -> None:
    """Write the settings unless they exist."""
    path, manifest = folder / SETTINGS, folder / MANIFEST
    data = _files.to_json(asked)
    try:
        _files.read_json(path)
        return
    except FileNotFoundError:
        fresh = not any((folder / name).exists() for name in (_files.JOURNAL, IMAGES, MANIFEST))
    except OSError:
        fresh = False
    if not fresh:
        # The settings are lost, but the manifest shows whether they were the same.
        known = _files.read_json(manifest)["files"][SETTINGS][1] if manifest.exists() else None
        if known != _files.digest(data):
            raise OSError(f"{path}: missing or damaged file; overwrite=True restarts the round")
        path.unlink(missing_ok=True)
    _files.write(path, data, folder, sync=True, replace=False)


def all_damaged(folder: Path, round: int, threads: int, progress: bool) -> list[str]:
    """The missing or damaged files of a complete round, relative to its folder."""
    out: list[str] = []
    manifest: dict[str, Any] = {"files": {}}
    try:
        manifest = _files.read_json(folder / MANIFEST)
        if manifest["round"] != round:
            out.append(MANIFEST)
    except OSError:
        out.append(MANIFEST)
    lines: list[bytes] = []
    for name in (SETTINGS, IMAGES):
        try:
            data = (folder / name).read_bytes()
            lines = data.split(b"\n")  # the files of the images come last
            if name in manifest["files"] and manifest["files"][name][1] != _files.digest(data):
                out.append(name)
        except OSError:
            out.append(name)
            lines = []
    records = [record for line in lines if line and (record := Record.parse(line)) is not None]
    found = _files.threaded_map(
        lambda record: _files.damaged(folder, record),
        records,
        len(records),
        threads,
        progress,
        f"verify round {round}",
    )
    out.extend(path for paths in found for path in paths)
    return out


def folder_of(root: Path, round: int) -> Path:
    return root / f"round-{round:04d}"


def existing_rounds(root: Path) -> list[int]:
    """The numbers of all rounds that have a folder, ascending."""
    if not root.is_dir():
        return []
    found = (re.fullmatch(r"round-(\d{4,})", path.name) for path in root.iterdir() if path.is_dir())
    numbers = sorted(int(match[1]) for match in found if match)
    return [n for n in numbers if any((folder_of(root, n) / name).exists() for name in (SETTINGS, MANIFEST))]
