"""Open a round for writing, on all ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selftrain_seg.store import _files
from selftrain_seg.store._files import SETTINGS
from selftrain_seg.store._folder import remove, start_round
from selftrain_seg.store._lock import RoundLocks, held
from selftrain_seg.store._ranks import on_all_ranks, world_size
from selftrain_seg.store._ranks import rank as own_rank
from selftrain_seg.store._settings import check_same, from_content
from selftrain_seg.store.writer import RoundWriter


def open_writer(
    folder: Path, asked: dict[str, Any], *, overwrite: bool, rank: int | None, threads: int, progress: bool
) -> RoundWriter:
    """Take the lock, start the round or compare its settings with those asked for, and open the writer."""
    locks = RoundLocks(folder)
    lock = locks.of_rank(own_rank() if rank is None else int(rank))
    found: dict[str, Any] = {}

    def take() -> None:
        if not lock.take():
            raise RuntimeError(held(lock.path))

    def begin() -> None:
        ours = {lock.path, *(locks.of_rank(number).path for number in range(world_size()))}
        if overwrite:
            with locks.no_writer(but=ours):
                remove(folder)
        with locks.change.exclusive():
            start_round(folder, asked)

    def compare() -> None:
        found.update(_files.read_json(folder / SETTINGS))
        check_same(asked, found, f"round {asked['round']}")

    try:
        on_all_ranks(take)
        on_all_ranks(begin, first_only=True)
        on_all_ranks(compare)
        settings = from_content(found, tuple(found["names"]))
        return RoundWriter(folder, settings, threads=threads, progress=progress, lock=lock)
    except BaseException:
        lock.release()
        raise
