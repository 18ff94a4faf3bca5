"""The store: one folder a round."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg._palette import checked_palette, voc_colour
from selftrain_seg.store import _files
from selftrain_seg.store._encode import KINDS
from selftrain_seg.store._files import MANIFEST, SETTINGS
from selftrain_seg.store._folder import all_damaged, begin_round, begun, folder_of, remove
from selftrain_seg.store._lock import RoundLocks, held
from selftrain_seg.store._names import checked_names
from selftrain_seg.store._ranks import rank as own_rank
from selftrain_seg.store._ranks import together, world_size
from selftrain_seg.store._settings import (
    RoundSettings,
    check_same,
    check_store,
    checked_meta,
    checked_portion,
    checked_thresholds,
    from_content,
    to_content,
)
from selftrain_seg.store.reader import StoredRound
from selftrain_seg.store.writer import RoundWriter
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["PseudoLabelStore"]


class PseudoLabelStore:
    """Keep the pseudo-labels of offline rounds on disk: 30 to 300 KiB an image instead of dense probabilities.

    Every round has a folder ``round-0003`` with ``labels/{name}.png``, PNG files with a palette that any viewer
    shows, and, as far as the selector made them and ``keep`` names them, beside them ``confidence``, ``soft``,
    ``pixel_weight`` and ``predicted``. ``settings.json`` tells from the start what the round was begun with,
    ``images.jsonl`` the size, the class counts and the checksums of every image, ``manifest.json`` the rest.
    The manifest is written last: without it a round is an interrupted one and not read.

    In 8 bits, confidences and weights are off by at most 1/510 (a confidence above 1, possible with a spatial prior,
    becomes 1); soft labels as :func:`expand_soft` says. The same input gives the same bytes, given the
    same versions of Pillow and its zlib.

    A store holds no state but its settings; it can be opened any number of times, and pickled.

    Args:
        root: folder of the rounds; made by the first :meth:`write`.
        num_classes: C, at most 255.
        classes: C names, for the manifest.
        palette: C RGB colours of 0 to 255; None for well separated ones. Ignored pixels are drawn black.
        ignore_index: label of the pixels that are not selected, in [C, 255].
        keep: what to keep beside the labels, where the pseudo-labels have it: any of ``"confidence"``,
            ``"soft"``, ``"pixel_weight"`` and ``"predicted"``.
        top_k: entries kept of each soft label, at least 1; the others count as 0.
        threads: that encode, decode and check files in the background; 0 for none.

    State / distributed:
        :meth:`write` and :meth:`RoundWriter.finish` are collectives of the default process group, if there is
        one. The folder must be one that all ranks see. All else concerns one process.

    Raises:
        TypeError: ``num_classes``, ``ignore_index``, ``top_k`` or ``threads`` is not an int.
        ValueError: ``num_classes`` or ``ignore_index`` does not fit 8 bits, or the latter is a class; ``classes`` or
            ``palette`` does not have C entries, or a colour is not three values of 0 to 255; ``keep`` names something
            else, or twice; ``top_k`` is below 1 or ``threads`` below 0.

    Example:
        >>> import tempfile, torch
        >>> from selftrain_seg.selectors import select_hard
        >>> from selftrain_seg.store import PseudoLabelStore
        >>> logits, thresholds = torch.tensor([[2.0, 0.0]]).log1p().view(1, 2, 1, 1), torch.tensor([0.6, 0.5])
        >>> with tempfile.TemporaryDirectory() as root:
        ...     store = PseudoLabelStore(root, 2)
        ...     with store.write(0, ["bonn/000"], thresholds=thresholds) as writer:
        ...         writer.add(["bonn/000"], select_hard(logits, thresholds))
        ...         stored = writer.finish()
        ...     store.rounds(), store.latest().read("bonn/000").labels, store.verify(0)
        ([0], tensor([[0]]), [])
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        num_classes: int,
        *,
        classes: Sequence[str] | None = None,
        palette: Sequence[Sequence[int]] | None = None,
        ignore_index: int = IGNORE_INDEX,
        keep: Sequence[str] = ("confidence", "soft", "pixel_weight"),
        top_k: int = 3,
        threads: int = 4,
    ) -> None:
        self.root = Path(root)
        check_store(num_classes, classes, ignore_index, keep)
        _checks.check_count(top_k, "top_k")
        _checks.check_count(threads, "threads", minimum=0)
        self.num_classes = int(num_classes)
        self.ignore_index = int(ignore_index)
        self.classes = None if classes is None else tuple(map(str, classes))
        colours = map(voc_colour, range(1, num_classes + 1)) if palette is None else palette  # none of them black
        self.palette = checked_palette(colours, num_classes)
        self.keep = tuple(kind for kind in KINDS if kind in keep)
        self.top_k = int(top_k)
        self.threads = int(threads)

    def __repr__(self) -> str:
        return f"PseudoLabelStore({str(self.root)!r}, {self.num_classes})"

    def write(
        self,
        round: int,
        names: Iterable[str],
        *,
        thresholds: Tensor | None = None,
        portion: float | Tensor | None = None,
        meta: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        rank: int | None = None,
        progress: bool = False,
    ) -> RoundWriter:
        """Begin a round, or continue an interrupted one: what is whole on disk is not written again.

        A complete round opens too. Where all its files are whole there is nothing to write; otherwise it counts as
        interrupted until the damaged images are written again and the round is finished.

        Args:
            round: its number, at least 0.
            names: of all images of the round, in order; without suffix, with ``/`` between folders.
            thresholds: (C,) those with which the pixels are selected, kept bit for bit. To continue with the
                very same ones, take them from :meth:`settings`.
            portion: the portion they stand for, a number in [0, 1] or (C,).
            meta: anything JSON can hold. An interrupted round keeps that with which it was begun.
            overwrite: remove what there is of this round and begin anew. No other writer of it may be open, but
                those of the same process group.
            rank: of this process among those that write the round at the same time; None for that in the process
                group, 0 without one. Processes that know nothing of each other need different ones.
            progress: show a bar while the files of an earlier attempt are checked, if tqdm is installed.

        Returns:
            The writer, best used in a ``with`` block.

        Raises:
            TypeError: ``round`` or ``rank`` is not an int; ``names`` are not str; ``thresholds`` is no floating-point
                tensor; ``portion`` is not a number; ``meta`` is no dict.
            ValueError: ``round`` or ``rank`` is below 0; there are no names, one comes twice, or one is not a relative
                path without ``..`` that a file can have; ``thresholds`` is not (C,) of at least 0;
                ``portion`` is outside [0, 1]; JSON cannot hold ``meta``; the round was begun with other settings.
            OSError: a file cannot be written; ``settings.json`` is missing or damaged.
            RuntimeError: a writer of the same rank is open, with ``overwrite`` one of any; another rank failed.
        """
        asked: dict[str, Any] = {}
        found: dict[str, Any] = {}

        def check() -> None:
            _checks.check_count(round, "round", minimum=0)
            if rank is not None:
                _checks.check_count(rank, "rank", minimum=0)
            asked.update(
                to_content(
                    RoundSettings(
                        round=int(round),
                        names=checked_names(names),
                        thresholds=checked_thresholds(thresholds, self.num_classes),
                        portion=checked_portion(portion, self.num_classes),
                        meta=checked_meta(meta),
                        num_classes=self.num_classes,
                        ignore_index=self.ignore_index,
                        classes=self.classes,
                        palette=self.palette,
                        keep=self.keep,
                        top_k=self.top_k,
                    )
                )
            )

        def compare() -> None:
            found.update(_files.read_json(self._folder(round) / SETTINGS))
            check_same(asked, found, f"round {round}")

        together(check)
        locks = RoundLocks(self._folder(round))
        lock = locks.of_rank(own_rank() if rank is None else int(rank))

        def take() -> None:
            if not lock.take():
                raise RuntimeError(held(lock.path))

        def begin() -> None:
            ours = {lock.path, *(locks.of_rank(number).path for number in range(world_size()))}
            if overwrite:
                with locks.no_writer(but=ours):
                    remove(self._folder(round))
            with locks.change.exclusive():
                begin_round(self._folder(round), asked)

        try:
            together(take)
            together(begin, first_only=True)
            together(compare)
            settings = from_content(found, tuple(found["names"]))
            return RoundWriter(self._folder(round), settings, threads=self.threads, progress=progress, lock=lock)
        except BaseException:
            lock.release()
            raise

    def delete(self, round: int) -> None:
        """Delete a round, complete or not. It vanishes at once: nobody ever sees half of it.

        A collective; rank 0 deletes. Who has the round open for reading gets an ``OSError`` at the next map.

        Args:
            round: its number.

        Raises:
            TypeError: ``round`` is not an int.
            ValueError: there is no such round.
            RuntimeError: a writer of it is open; another rank failed.
            OSError: the folder cannot be moved or removed.
        """

        def move_away() -> None:
            if round not in self._begun():
                raise ValueError(f"`round`: expected one of {self._begun()}, got {round}")
            with RoundLocks(self._folder(round)).no_writer():
                remove(self._folder(round))

        together(lambda: _checks.check_count(round, "round", minimum=0))
        together(move_away, first_only=True)

    def prune(self, *, keep: int = 1) -> list[int]:
        """Delete all rounds but the last complete ones, and what is newer than the oldest of those.

        Of complete rounds 0, 1, 2 and a round 3 that is being written, ``prune(keep=1)`` leaves 2 and 3. A collective,
        as :meth:`delete`.

        Args:
            keep: how many complete rounds stay, at least 1.

        Returns:
            The numbers of the deleted rounds, ascending; interrupted ones among them.

        Raises:
            TypeError: ``keep`` is not an int.
            ValueError: ``keep`` is below 1.
            RuntimeError: a writer of one of them is open; another rank failed.
            OSError: a manifest is damaged, the message names it; a folder cannot be moved or removed.
        """
        old: list[int] = []

        def choose() -> None:
            _checks.check_count(keep, "keep")
            kept = self.rounds()[-keep:]
            old.extend(number for number in self._begun() if len(kept) == keep and number < kept[0])

        together(choose)
        for number in old:
            self.delete(number)
        return old

    def rounds(self) -> list[int]:
        """List the complete rounds.

        Returns:
            Their numbers, ascending.

        Raises:
            OSError: a manifest is damaged; the message names it.
        """
        return [number for number in self._begun() if self._complete(number)]

    def interrupted(self) -> list[int]:
        """List the rounds that were begun and are not complete.

        Returns:
            Their numbers, ascending.
        """
        return [number for number in self._begun() if not (self._folder(number) / MANIFEST).exists()]

    def latest(self) -> StoredRound | None:
        """Open the last complete round.

        Returns:
            The round with the highest number, or None where no round is complete.

        Raises:
            OSError: a manifest is damaged; the message names it.
            ValueError: the round has other classes or another ``ignore_index`` than this store.
        """
        numbers = self.rounds()
        return self.round(numbers[-1]) if numbers else None

    def round(self, round: int) -> StoredRound:
        """Open a complete round.

        Args:
            round: its number.

        Returns:
            The round.

        Raises:
            TypeError: ``round`` is not an int.
            ValueError: there is no such round, or it is not complete; it has other classes or another
                ``ignore_index`` than this store.
            OSError: the manifest or the list of images is missing or damaged; the message names it.
        """
        self._check_complete(round)
        if not self._complete(round):
            raise ValueError(f"`round`: expected a complete round, got {round}, of which the manifest says it is not")
        stored = StoredRound(self._folder(round))
        if stored.round != round:
            raise OSError(f"{self._folder(round) / MANIFEST}: damaged file, it is that of round {stored.round}")
        for name in ("num_classes", "ignore_index"):
            expected, got = getattr(stored.settings, name), getattr(self, name)
            if expected != got:
                raise ValueError(f"`{name}`: expected {expected}, with which round {round} was written, got {got}")
        return stored

    def settings(self, round: int) -> RoundSettings:
        """Tell what a round was begun with, complete or not: its thresholds among others.

        Args:
            round: its number.

        Returns:
            The settings.

        Raises:
            TypeError: ``round`` is not an int.
            ValueError: there is no such round.
            OSError: ``settings.json`` is damaged; the message names it.
        """
        path = self._folder(round) / SETTINGS
        if not path.exists():
            raise ValueError(f"`round`: expected one of {self._begun()}, got {round}")
        content = _files.read_json(path)
        return from_content(content, tuple(content["names"]))

    def verify(self, round: int, *, progress: bool = False) -> list[str]:
        """Compare every file of a complete round with its checksum.

        To mend a round, :meth:`write` it again with the same settings: the damaged images are its missing ones.

        Args:
            round: its number.
            progress: show a bar, if tqdm is installed.

        Returns:
            The files that are missing or damaged, all of them, relative to ``root``; empty where all is well.

        Raises:
            TypeError: ``round`` is not an int.
            ValueError: there is no such round, or it is not complete.
        """
        self._check_complete(round)
        folder = self._folder(round)
        return [f"{folder.name}/{path}" for path in all_damaged(folder, round, self.threads, progress)]

    def disk_bytes(self, round: int) -> int:
        """Measure what a round takes on disk, complete or not.

        Args:
            round: its number.

        Returns:
            The sum of the sizes of all files in its folder.

        Raises:
            TypeError: ``round`` is not an int.
            ValueError: there is no such round.
        """
        folder = self._folder(round)
        if not folder.is_dir():
            raise ValueError(f"`round`: expected one of {self._begun()}, got {round}")
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def _folder(self, round: int) -> Path:
        _checks.check_count(round, "round", minimum=0)
        return folder_of(self.root, int(round))

    def _begun(self) -> list[int]:
        return begun(self.root)

    def _complete(self, round: int) -> bool:
        path = self._folder(round) / MANIFEST
        return path.exists() and _files.read_json(path)["complete"] is True

    def _check_complete(self, round: int) -> None:
        if not (self._folder(round) / MANIFEST).exists():
            state = "which is not complete" if round in self._begun() else "which is not there"
            raise ValueError(f"`round`: expected a complete round, got {round}, {state}")
