"""Complete a round: flush its files to disk, then write the list of its images and its manifest."""

from __future__ import annotations

import shutil
from pathlib import Path

from selftrain_seg._files import sync_to_disk
from selftrain_seg.store import _files
from selftrain_seg.store._files import Record
from selftrain_seg.store._manifest import listed, manifest_of
from selftrain_seg.store._names import file_of
from selftrain_seg.store._settings import RoundSettings


def synchronise(folder: Path, settings: RoundSettings, threads: int) -> None:
    """Flush all files to disk; called on every rank, as each machine has its own buffers."""
    if (folder / _files.MANIFEST).exists():
        return
    kinds = ("labels", *settings.keep)
    paths = [folder / file_of(kind, name) for name in settings.names for kind in kinds]
    folders = {parent for path in paths for parent in path.relative_to(folder).parents}
    paths += [folder / parent for parent in sorted(folders, reverse=True)]
    for _ in _files.threaded_map(sync_to_disk, paths, len(paths), max(4, threads), False, ""):
        pass


def complete(folder: Path, settings: RoundSettings) -> None:
    """Write the list of images and the manifest, unless there is one, and remove the journals."""
    manifest = folder / _files.MANIFEST
    if not manifest.exists():
        records = _intact(folder, settings)
        lines = b"".join(record.line() for record in records)
        _files.write(folder / _files.IMAGES, lines, folder, sync=True)
        _files.write(manifest, _files.to_json(manifest_of(folder, settings, records)), folder, sync=True)
    for leftover in (_files.JOURNAL, _files.PARTIAL):
        shutil.rmtree(folder / leftover, ignore_errors=True)


def _intact(folder: Path, settings: RoundSettings) -> list[Record]:
    """Return the record of each image that matches the files on disk."""
    found, chosen, absent = _files.records(folder), [], []
    for name in settings.names:
        candidates = found.get(name, [])
        if len(candidates) == 1:
            fits = [record for record in candidates if _files.same_sizes(folder, record)]
        else:  # written several times with different content: by two ranks, or again after damage
            fits = [record for record in candidates if not _files.damaged(folder, record)]
        if fits:
            chosen.append(fits[-1])
        else:
            absent.append(name)
    if absent:
        raise RuntimeError(
            f"round {settings.round} is not complete: {len(absent)} of {len(settings.names)} images are"
            f" missing:{listed(absent[:5])[1:]}{', …' if len(absent) > 5 else ''}"
        )
    first = chosen[0]
    for record in chosen:
        if record.files.keys() != first.files.keys() or (record.predicted is None) != (first.predicted is None):
            raise RuntimeError(
                f"round {settings.round}: expected the same fields in all images, got"
                f" {', '.join(first.files)} in {first.name!r} and {', '.join(record.files)} in {record.name!r}"
            )
    return chosen
