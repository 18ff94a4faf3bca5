"""Writing a round: any number of processes and ranks, killed and begun again as often as it takes."""

from __future__ import annotations

import contextlib
import os
import shutil
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

from selftrain_seg._files import sync_to_disk
from selftrain_seg.distributed import all_reduce_sum
from selftrain_seg.store import _files
from selftrain_seg.store._encode import KINDS, HostBatch, check_batch, to_host
from selftrain_seg.store._files import Record
from selftrain_seg.store._lock import Lock, RoundLocks
from selftrain_seg.store._manifest import manifest_of, several
from selftrain_seg.store._names import file_of
from selftrain_seg.store._png import encode_grey, encode_indexed, full_palette
from selftrain_seg.store._ranks import rank, together, world_size
from selftrain_seg.store._settings import RoundSettings
from selftrain_seg.store.reader import StoredRound
from selftrain_seg.types import PseudoLabels

__all__ = ["RoundWriter"]


class RoundWriter:
    """A round that is being written, as :meth:`PseudoLabelStore.write` opens it.

    Each file is written under another name first and then put into place; a line with its checksum follows in the
    journal of the process. What a killed process leaves is therefore either whole and listed, or written again.
    Only :meth:`finish` makes the round a complete one, and from then on no writer that is still open changes it.

    A round has one open writer a rank. It holds a lock, which :meth:`close` lets go, and so does the end of its
    process, however it ends. A writer can be pickled and forked: copies in other processes, such as workers of a
    DataLoader, need no lock of their own, and write files and journals of their own.

    Args:
        folder: of the round.
        settings: what it was begun with.
        threads: that encode images while the caller goes on; 0 for none.
        progress: show a bar while the files of an earlier attempt are checked, if tqdm is installed.
        lock: that this writer holds until it is closed.

    State / distributed:
        Opening and :meth:`finish` are collectives of the default process group, if there is one: every rank
        must call them. All else concerns one process.

    Raises:
        RuntimeError: another rank failed to open the round.

    Example:
        >>> import tempfile, torch
        >>> from selftrain_seg import PseudoLabels
        >>> from selftrain_seg.store import PseudoLabelStore
        >>> with tempfile.TemporaryDirectory() as root:
        ...     store = PseudoLabelStore(root, 2)
        ...     with store.write(0, ["a", "b"]) as writer:  # is interrupted after the first image
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
        together(lambda: self._look_for_intact(intact, progress))
        self._done.update(name for name, there in zip(settings.names, all_reduce_sum(intact), strict=True) if there > 0)
        together(self._reopen, first_only=True)

    def missing(self) -> list[str]:
        """List the images that are still to be written.

        All ranks get the same list right after opening, so ``writer.missing()[rank::world_size]`` shares the work.

        Returns:
            In the order of the round, the names that were neither whole on disk when this writer was opened nor
            added by this process since.
        """
        return [name for name in self.settings.names if name not in self._done]

    def add(self, names: Sequence[str], pseudo: PseudoLabels) -> None:
        """Write the pseudo-labels of a batch; images that are there already are left as they are.

        The maps are checked and rounded on their device, and copied to the host at once. With ``threads`` the
        rest happens in the background, and so an error may be raised by a later call.

        Args:
            names: B names among those of the round.
            pseudo: the selector's output. B may be 0.

        Raises:
            TypeError: ``pseudo`` is no ``PseudoLabels``, or its tensors not of the kinds it describes.
            ValueError: there is not one name for each image; a name is not one of the round's; shapes or devices
                do not fit; an image has no pixels; a label is neither in [0, C) nor ``ignore_index``;
                ``confidence`` is negative, infinite or NaN; ``pixel_weight`` is outside [0, 1]; an entry of ``soft``
                is negative, or a pixel's sum neither 1 nor 0 to within 0.01; other fields are there than in the
                images before.
            RuntimeError: the writer is closed; another one has finished the round, begun it anew or deleted it.
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
                f"`pseudo`: expected labels{several(self._kinds)} as in the images before, got labels{several(kinds)}"
            )
        batch = to_host(
            pseudo, names, kinds, self.settings.num_classes, self.settings.ignore_index, self.settings.top_k
        )
        self._kinds = kinds
        if self._process != os.getpid():  # forked: threads, locks and journal are those of another process
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
        """Complete the round: write the list of its images and, last of all, its manifest.

        Before the manifest, all files are synchronised with the disk, by ``threads`` at a time: what a complete round
        says it holds is there even after a loss of power. That takes some tenths of a millisecond a file.

        Returns:
            The round, ready to be read.

        State / distributed: a collective; rank 0 writes. Without a process group, call it in one process once all
        others have closed their writers.

        Raises:
            RuntimeError: images are missing, or do not all have the same fields; another rank failed.
            OSError: a file cannot be written.
        """
        together(self.close)
        together(self._synchronise)
        together(self._complete, first_only=True)
        return StoredRound(self._folder)

    def close(self) -> None:
        """Wait for what is being written; the round stays open for another writer, or for :meth:`finish`.

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
        else:  # what went wrong first is what matters
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
        """What belongs to one process. The files themselves come with the first image."""
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
        """Once there is a manifest nobody writes: what it promises must not change."""
        if (self._folder / _files.MANIFEST).exists():
            raise RuntimeError(f"round {self.settings.round} was finished by another writer; this one writes no more")
        if _state_of(self._folder) != self._begun:
            raise RuntimeError(
                f"round {self.settings.round} was begun anew or deleted while this writer was open; it writes no more"
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
        """Check the files of earlier attempts, each rank its share of them."""
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
        checks = _files.mapped(whole, mine if found else (), len(mine), self._threads, bar, title)
        for place, there in zip(mine, checks, strict=False):
            intact[place] = there
        records = (record for name in names for record in found.get(name, []))
        first = next((record for record in records if not _files.damaged(self._folder, record)), None)
        if first is not None:
            self._kinds = tuple(kind for kind in KINDS if kind in first.files)

    def _reopen(self) -> None:
        """A round of which something is missing or damaged is not complete until it is finished again."""
        if self._stale_manifest or self._done != self._names:
            (self._folder / _files.MANIFEST).unlink(missing_ok=True)

    def _synchronise(self) -> None:
        """Every rank all files: what its own machine has not written out yet, of its workers too."""
        if (self._folder / _files.MANIFEST).exists():
            return
        kinds = ("labels", *self.settings.keep)
        paths = [self._folder / file_of(kind, name) for name in self.settings.names for kind in kinds]
        folders = {parent for path in paths for parent in path.relative_to(self._folder).parents}
        paths += [self._folder / folder for folder in sorted(folders, reverse=True)]
        for _ in _files.mapped(sync_to_disk, paths, len(paths), max(4, self._threads), False, ""):
            pass

    def _complete(self) -> None:
        with self._locks.change.exclusive():  # of what is being written now, every image is whole or not begun
            self._complete_alone()

    def _complete_alone(self) -> None:
        manifest = self._folder / _files.MANIFEST
        if not manifest.exists():
            records = self._chosen()
            lines = b"".join(record.line() for record in records)
            _files.write(self._folder / _files.IMAGES, lines, self._folder, sync=True)
            content = manifest_of(self._folder, self.settings, records)
            _files.write(manifest, _files.to_json(content), self._folder, sync=True)
        for leftover in (_files.JOURNAL, _files.PARTIAL):
            shutil.rmtree(self._folder / leftover, ignore_errors=True)

    def _chosen(self) -> list[Record]:
        """For each image the record that tells what is on disk."""
        found, chosen, absent = _files.records(self._folder), [], []
        for name in self.settings.names:
            candidates = found.get(name, [])
            if len(candidates) == 1:
                fits = [record for record in candidates if _files.same_sizes(self._folder, record)]
            else:  # written more than once and not alike: by two ranks, or again after damage
                fits = [record for record in candidates if not _files.damaged(self._folder, record)]
            if fits:
                chosen.append(fits[-1])
            else:
                absent.append(name)
        if absent:
            raise RuntimeError(
                f"round {self.settings.round} is not complete: {len(absent)} of {len(self.settings.names)} images are"
                f" missing:{several(absent[:5])[1:]}{', …' if len(absent) > 5 else ''}"
            )
        first = chosen[0]
        for record in chosen:
            if record.files.keys() != first.files.keys() or (record.predicted is None) != (first.predicted is None):
                raise RuntimeError(
                    f"round {self.settings.round}: expected the same fields in all images, got"
                    f" {', '.join(first.files)} in {first.name!r} and {', '.join(record.files)} in {record.name!r}"
                )
        return chosen


def _state_of(folder: Path) -> tuple[int, int, int] | None:
    """Of the settings' file: another one means that the round was begun anew."""
    try:
        state = (folder / _files.SETTINGS).stat()
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns
