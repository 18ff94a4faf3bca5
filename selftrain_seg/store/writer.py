"""Write a round with several processes and ranks, and resume it after an interruption."""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftrain_seg.distributed import all_reduce_sum
from selftrain_seg.store import _files
from selftrain_seg.store._complete import complete, synchronise
from selftrain_seg.store._encode import KINDS, HostBatch, check_batch, to_host
from selftrain_seg.store._files import Record
from selftrain_seg.store._lock import Lock, RoundLocks
from selftrain_seg.store._manifest import listed
from selftrain_seg.store._names import file_of
from selftrain_seg.store._png import encode_grey, encode_indexed, full_palette
from selftrain_seg.store._ranks import on_all_ranks, rank, world_size
from selftrain_seg.store._settings import RoundSettings
from selftrain_seg.store.reader import StoredRound
from selftrain_seg.types import PseudoLabels

__all__ = ["RoundWriter"]


class RoundWriter:
    """A round that is being written, as opened by :meth:`PseudoLabelStore.write`.

    Each file is written under a temporary name and renamed; its checksum is then appended to the journal of the
    process. After a kill, every image is either intact and listed, or is written again. :meth:`finish` completes the
    round; from then on, no open writer can change it.

    A round has one open writer per rank. The writer holds a lock until :meth:`close` or the end of its process. It can
    be pickled and forked: copies in other processes, such as DataLoader workers, share the lock and write their own
    files and journals.

    Args:
        folder: folder of the round.
        settings: settings of the round.
        threads: number of threads that encode images in the background; 0 for none.
        progress: show a progress bar while existing files are checked, if tqdm is installed.
        lock: lock that this writer holds until it is closed.

    State / distributed:
        Opening and :meth:`finish` are collectives of the default process group, if there is one: every rank
        must call them. All other methods are local to a process.

    Raises:
        RuntimeError: another rank failed to open the round.

    Example:
        >>> import tempfile, torch
        >>> from selftrain_seg import PseudoLabels
        >>> from selftrain_seg.store import PseudoLabelStore
        >>> with tempfile.TemporaryDirectory() as root:
        ...     store = PseudoLabelStore(root, 2)
        ...     with store.write(0, ["a", "b"]) as writer:  # interrupted after the first image
        ...         writer.add(["a"], PseudoLabels(torch.zeros(1, 4, 4, dtype=torch.long), torch.ones(1, 4, 4)))
        ...     store.latest(), store.write(0, ["a", "b"]).missing()
        (None, ['b'])
    """

    _process: int
    _closed: bool
    _journal: int | None
    _waiting: deque[Future[None]]
    _pool: ThreadPoolExecutor | None

    def __init__(
        self, folder: Path, settings: RoundSettings, *, threads: int, progress: bool = False, lock: Lock | None = None
    ) -> None:
        self.settings = settings
        self._folder = folder
        self._lock_of_rank = lock
        self._begun = _state_of(folder)
        self._threads = threads
        self._palette = full_palette(settings.palette, settings.ignore_index)
        self._names = frozenset(settings.names)
        self._kinds: tuple[str, ...] | None = None
        self._open()
        self._done: set[str] = set()
        self._stale_manifest = False
        intact = torch.zeros(len(settings.names), dtype=torch.int32)
        on_all_ranks(lambda: self._look_for_intact(intact, progress))
        self._done.update(name for name, there in zip(settings.names, all_reduce_sum(intact), strict=True) if there > 0)
        on_all_ranks(self._reopen, first_only=True)

    def missing(self) -> list[str]:
        """List the images that are still to be written.

        Directly after opening, all ranks get the same list, so ``writer.missing()[rank::world_size]`` divides the work.

        Returns:
            Names, in the order of the round, of the images that were not intact on disk when the writer was opened and
            that this process has not added since.
        """
        return [name for name in self.settings.names if name not in self._done]

    def add(self, names: Sequence[str], pseudo: PseudoLabels) -> None:
        """Write the pseudo-labels of a batch; images that are already written are skipped.

        The maps are checked and rounded on their device and copied to the host. With ``threads`` they are encoded and
        written in the background, so a later call may raise the error.

        Args:
            names: B names of images of the round.
            pseudo: output of the selector. B may be 0.

        Raises:
            TypeError: ``pseudo`` is not a ``PseudoLabels``, or a tensor in it has the wrong dtype.
            ValueError: the number of names is not B; a name is not in the round; shapes or devices differ; an image
                has no pixels; a label is neither in [0, C) nor ``ignore_index``; ``confidence`` is negative, infinite
                or NaN; ``pixel_weight`` is outside [0, 1]; an entry of ``soft`` is negative, or its sum over classes
                is not within 0.01 of 1 or 0; the fields differ from those of the previous images.
            RuntimeError: the writer is closed; another writer has finished, restarted or deleted the round.
            OSError: a file cannot be written.
        """
        if self._closed:
            raise RuntimeError("the writer is closed; PseudoLabelStore.write opens another one")
        if isinstance(names, str):
            raise TypeError("`names`: expected one for each image of the batch, got one str")
        names = list(names)
        check_batch(pseudo, len(names), self.settings.num_classes)
        for name in names:
            if name not in self._names:
                raise ValueError(f"`names`: expected names of round {self.settings.round}, got {name!r}")
        new = [place for place, name in enumerate(names) if name not in self._done]
        if not new:
            return
        if len(new) < len(names):
            names = [names[place] for place in new]
            pseudo = PseudoLabels(*(None if value is None else value[new] for value in pseudo))  # type: ignore[arg-type]
        kinds = tuple(kind for kind in KINDS if kind in self.settings.keep and getattr(pseudo, kind) is not None)
        if self._kinds not in (None, kinds):
            raise ValueError(
                f"`pseudo`: expected labels{listed(self._kinds)} as in previous images, got labels{listed(kinds)}"
            )
        batch = to_host(
            pseudo, names, kinds, self.settings.num_classes, self.settings.ignore_index, self.settings.top_k
        )
        self._kinds = kinds
        if self._process != os.getpid():  # forked: threads, locks and journal belong to the parent
            self._open()
        for place, name in enumerate(names):
            if name in self._done:
                continue
            self._done.add(name)
            if self._pool is None:
                self._write_image(name, kinds, batch, place)
            else:
                self._wait(at_most=4 * self._threads)
                self._waiting.append(self._pool.submit(self._write_image, name, kinds, batch, place))

    def finish(self) -> StoredRound:
        """Complete the round: write the list of its images, then its manifest.

        All files are flushed to disk before the manifest is written, so that a complete round survives a power
        failure. This takes a few tenths of a millisecond per file.

        Returns:
            The complete round.

        State / distributed: a collective; rank 0 writes. Without a process group, call it in one process after all
        others have closed their writers.

        Raises:
            RuntimeError: images are missing, or do not all have the same fields; another rank failed.
            OSError: a file cannot be written.
        """
        on_all_ranks(self.close)
        on_all_ranks(lambda: synchronise(self._folder, self.settings, self._threads))
        on_all_ranks(self._complete, first_only=True)
        return StoredRound(self._folder)

    def close(self) -> None:
        """Finish writing in the background and release the lock; the round is not completed.

        Raises:
            OSError: a file could not be written.
        """
        self._closed = True
        if self._process != os.getpid():
            return
        try:
            self._wait(at_most=0)
        finally:
            self._waiting.clear()
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)
                self._pool = None
            if self._journal is not None:
                os.close(self._journal)
                self._journal = None
            if self._lock_of_rank is not None:
                self._lock_of_rank.release()

    def __enter__(self) -> RoundWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:  # raise the first error
            with contextlib.suppress(Exception):
                self.close()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_pool", "_lock", "_locks", "_lock_of_rank", "_waiting", "_journal", "_process")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock_of_rank = None
        self._open()

    def _open(self) -> None:
        """Set up the state of one process. The files are created with the first image."""
        self._process = os.getpid()
        self._closed = False
        self._lock = threading.Lock()
        self._locks = RoundLocks(self._folder)
        self._journal = None
        self._waiting = deque()
        self._pool = ThreadPoolExecutor(self._threads, "pseudo-labels") if self._threads else None

    def _wait(self, at_most: int) -> None:
        while len(self._waiting) > at_most:
            self._waiting.popleft().result()

    def _write_image(self, name: str, kinds: Iterable[str], batch: HostBatch, place: int) -> None:
        try:
            counts: dict[str, list[int]] = {}
            for kind in ("labels", "predicted"):
                if kind in batch.maps:
                    found = np.asarray(torch.bincount(torch.from_numpy(batch.maps[kind][place].ravel()), minlength=256))
                    found[self.settings.ignore_index] = 0
                    counts[kind] = [int(count) for count in found[: self.settings.num_classes]]
            contents = {}
            for kind in ("labels", *kinds):
                values = batch.maps[kind][place]
                if kind in ("confidence", "pixel_weight"):
                    contents[kind] = encode_grey(values[0])
                else:
                    contents[kind] = encode_indexed(
                        values.reshape(-1, values.shape[-1]), None if kind == "soft" else self._palette
                    )
            height, width = batch.maps["labels"].shape[-2:]
            dropped = None if batch.dropped is None else (int(batch.dropped[place, 0]), int(batch.dropped[place, 1]))
            files = {kind: (len(data), _files.digest(data)) for kind, data in contents.items()}
            record = Record(name, (height, width), counts["labels"], counts.get("predicted"), dropped, files)
            with self._locks.change.shared():
                self._check_unfinished()
                for kind, data in contents.items():
                    _files.write(self._folder / file_of(kind, name), data, self._folder)
                self._note(record)
        except BaseException:
            self._done.discard(name)
            raise

    def _check_unfinished(self) -> None:
        """Raise an error if the round was finished, restarted or deleted."""
        if (self._folder / _files.MANIFEST).exists():
            raise RuntimeError(f"round {self.settings.round} was finished by another writer and cannot be changed")
        if _state_of(self._folder) != self._begun:
            raise RuntimeError(
                f"round {self.settings.round} was restarted or deleted while this writer was open; open another one"
            )

    def _note(self, record: Record) -> None:
        line = record.line()
        with self._lock:
            if self._journal is None:
                path = self._folder / _files.JOURNAL / f"{uuid.uuid4().hex}.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                self._journal = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
            while line:
                line = line[os.write(self._journal, line) :]

    def _look_for_intact(self, intact: Tensor, progress: bool) -> None:
        """Check the existing files; each rank checks its share."""
        if (self._folder / _files.MANIFEST).exists():
            try:
                StoredRound(self._folder)
            except OSError:
                self._stale_manifest = True
        names, found = self.settings.names, _files.records(self._folder)
        mine = range(rank(), len(names), world_size())

        def whole(place: int) -> bool:
            return any(not _files.damaged(self._folder, record) for record in found.get(names[place], []))

        title, bar = f"round {self.settings.round}", progress and rank() == 0
        checks = _files.threaded_map(whole, mine if found else (), len(mine), self._threads, bar, title)
        for place, there in zip(mine, checks, strict=False):
            intact[place] = there
        records = (record for name in names for record in found.get(name, []))
        first = next((record for record in records if not _files.damaged(self._folder, record)), None)
        if first is not None:
            self._kinds = tuple(kind for kind in KINDS if kind in first.files)

    def _reopen(self) -> None:
        """Mark a complete round with missing or damaged files as interrupted."""
        if self._stale_manifest or self._done != self._names:
            (self._folder / _files.MANIFEST).unlink(missing_ok=True)

    def _complete(self) -> None:
        with self._locks.change.exclusive():  # waits until every image is either written or not started
            complete(self._folder, self.settings)


def _state_of(folder: Path) -> tuple[int, int, int] | None:
    """Identity of the settings file; it changes when the round is restarted."""
    try:
        state = (folder / _files.SETTINGS).stat()
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns
