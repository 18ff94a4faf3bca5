"""The store of pseudo-labels, with one folder per round."""

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
from selftrain_seg.store._folder import all_damaged, existing_rounds, folder_of, remove
from selftrain_seg.store._lock import RoundLocks
from selftrain_seg.store._names import checked_names
from selftrain_seg.store._open import open_writer
from selftrain_seg.store._ranks import on_all_ranks
from selftrain_seg.store._settings import (
    RoundSettings,
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
    """Store the pseudo-labels of offline rounds on disk: 30 to 300 KiB per image instead of dense probabilities.

    Every round has a folder such as ``round-0003``. It contains ``labels/{name}.png``, PNG files with a palette, and
    the fields named in ``keep`` that the selector returns: ``confidence``, ``soft``, ``pixel_weight`` and
    ``predicted``. ``settings.json`` holds the settings of the round and is written first; ``images.jsonl`` holds the
    size, class counts and checksums of every image; ``manifest.json`` holds everything else. The manifest is written
    last: a round without it is interrupted and cannot be read.

    Confidences and weights have 8 bits and are off by at most 1/510 (a confidence above 1, possible with a spatial
    prior, becomes 1). For the error of soft labels see :func:`expand_soft`. The same input gives the same bytes, with
    the same versions of Pillow and its zlib.

    A store has no state except its settings; it can be opened several times, and pickled.

    Args:
        root: folder of the rounds; created by the first :meth:`write`.
        num_classes: C, at most 255.
        classes: C names, for the manifest.
        palette: C RGB colours of 0 to 255; None for distinct default colours. Ignored pixels are black.
        ignore_index: label of the pixels that are not selected, in [C, 255].
        keep: fields to store in addition to the labels, if the pseudo-labels have them: any of ``"confidence"``,
            ``"soft"``, ``"pixel_weight"`` and ``"predicted"``.
        top_k: number of entries stored of each soft label, at least 1; the others count as 0.
        threads: number of threads that encode, decode and check files in the background; 0 for none.

    State / distributed:
        :meth:`write`, :meth:`delete`, :meth:`prune` and :meth:`RoundWriter.finish` are collectives of the default
        process group, if there is one. All ranks must share the folder. All other methods are local to a process.

    Raises:
        TypeError: ``num_classes``, ``ignore_index``, ``top_k`` or ``threads`` is not an int.
        ValueError: ``num_classes`` or ``ignore_index`` does not fit 8 bits, or the latter is a class; ``classes`` or
            ``palette`` does not have C entries, or a colour is not three values of 0 to 255; ``keep`` has an unknown
            or repeated name; ``top_k`` is below 1 or ``threads`` is below 0.

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
        """Start a round, or resume an interrupted one, keeping the images that are intact on disk.

        A complete round can be opened too. If files are damaged, it counts as interrupted until the damaged images are
        written again and the round is finished.

        Args:
            round: number of the round, at least 0.
            names: names of all images of the round, in order; without suffix, with ``/`` between folders.
            thresholds: (C,) thresholds of the selection, stored bit for bit. To resume a round with its thresholds,
                take them from :meth:`settings`.
            portion: the portion of the thresholds, a number in [0, 1] or (C,).
            meta: metadata that JSON supports. A resumed round keeps its first ``meta``.
            overwrite: whether to delete the round and start it again. Only writers of the same process group may have
                it open.
            rank: rank of this process among the processes that write the round; None for that in the process group, or
                0 without one. Processes without a common process group need different ranks.
            progress: show a progress bar while existing files are checked, if tqdm is installed.

        Returns:
            The writer; use it in a ``with`` block.

        Raises:
            TypeError: ``round`` or ``rank`` is not an int; ``names`` are not str; ``thresholds`` is not a
                floating-point tensor; ``portion`` is not a number; ``meta`` is not a dict.
            ValueError: ``round`` or ``rank`` is below 0; ``names`` is empty, has repeats, or a name is not a valid
                relative path without ``..``; ``thresholds`` is not (C,) or has values below 0; ``portion`` is outside
                [0, 1]; JSON does not support ``meta``; the round was started with other settings.
            OSError: a file cannot be written; ``settings.json`` is missing or damaged.
            RuntimeError: a writer of the same rank (with ``overwrite``, of any rank) is open; another rank failed.
        """
        asked: dict[str, Any] = {}

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

        on_all_ranks(check)
        return open_writer(
            self._folder(round), asked, overwrite=overwrite, rank=rank, threads=self.threads, progress=progress
        )

    def delete(self, round: int) -> None:
        """Delete a round, complete or not, atomically.

        A collective; rank 0 deletes. Readers that have the round open get an ``OSError`` at the next read.

        Args:
            round: number of the round.

        Raises:
            TypeError: ``round`` is not an int.
            ValueError: there is no such round.
            RuntimeError: a writer of it is open; another rank failed.
            OSError: the folder cannot be moved or removed.
        """

        def move_away() -> None:
            if round not in self._existing():
                raise ValueError(f"`round`: expected one of {self._existing()}, got {round}")
            with RoundLocks(self._folder(round)).no_writer():
                remove(self._folder(round))

        on_all_ranks(lambda: _checks.check_count(round, "round", minimum=0))
        on_all_ranks(move_away, first_only=True)

    def prune(self, *, keep: int = 1) -> list[int]:
        """Delete all rounds that are older than the last ``keep`` complete ones.

        With complete rounds 0, 1 and 2 and a round 3 that is being written, ``prune(keep=1)`` keeps 2 and 3. A
        collective, like :meth:`delete`.

        Args:
            keep: number of complete rounds to keep, at least 1.

        Returns:
            The numbers of the deleted rounds, ascending, including interrupted ones.

        Raises:
            TypeError: ``keep`` is not an int.
            ValueError: ``keep`` is below 1.
            RuntimeError: a writer of one of them is open; another rank failed.
            OSError: a manifest is damaged (the message names it), or a folder cannot be moved or removed.
        """
        old: list[int] = []

        def choose() -> None:
            _checks.check_count(keep, "keep")
            kept = self.rounds()[-keep:]
            old.extend(number for number in self._existing() if len(kept) == keep and number < kept[0])

        on_all_ranks(choose)
        for number in old:
            self.delete(number)
        return old

    def rounds(self) -> list[int]:
        """List the complete rounds.

        Returns:
            Their numbers, ascending.

        Raises:
            OSError: a manifest is damaged; the message names the file.
        """
        return [number for number in self._existing() if self._complete(number)]

    def interrupted(self) -> list[int]:
        """List the rounds that were started and are not complete.

        Returns:
            Their numbers, ascending.
        """
        return [number for number in self._existing() if not (self._folder(number) / MANIFEST).exists()]

    def latest(self) -> StoredRound | None:
        """Open the last complete round.

        Returns:
            The complete round with the highest number, or None if there is none.

        Raises:
            OSError: a manifest is damaged; the message names the file.
            ValueError: the round has other classes or another ``ignore_index`` than this store.
        """
        numbers = self.rounds()
        return self.round(numbers[-1]) if numbers else None

    def round(self, round: int) -> StoredRound:
        """Open a complete round.

        Args:
            round: number of the round.

        Returns:
            The round.

        Raises:
            TypeError: ``round`` is not an int.
            ValueError: there is no such round, or it is not complete; it has other classes or another
                ``ignore_index`` than this store.
            OSError: the manifest or the list of images is missing or damaged; the message names the file.
        """
        self._check_complete(round)
        if not self._complete(round):
            raise ValueError(f"`round`: expected a complete round, got {round}, whose manifest says it is not complete")
        stored = StoredRound(self._folder(round))
        if stored.round != round:
            raise OSError(f"{self._folder(round) / MANIFEST}: damaged file, it belongs to round {stored.round}")
        for name in ("num_classes", "ignore_index"):
            expected, got = getattr(stored.settings, name), getattr(self, name)
            if expected != got:
                raise ValueError(f"`{name}`: expected {expected}, as round {round} was written with it, got {got}")
        return stored

    def settings(self, round: int) -> RoundSettings:
        """Read the settings of a round, complete or not, such as its thresholds.

        Args:
            round: number of the round.

        Returns:
            The settings.

        Raises:
            TypeError: ``round`` is not an int.
            ValueError: there is no such round.
            OSError: ``settings.json`` is damaged; the message names the file.
        """
        path = self._folder(round) / SETTINGS
        if not path.exists():
            raise ValueError(f"`round`: expected one of {self._existing()}, got {round}")
        content = _files.read_json(path)
        return from_content(content, tuple(content["names"]))

    def verify(self, round: int, *, progress: bool = False) -> list[str]:
        """Compare every file of a complete round with its checksum.

        To repair a round, open it with :meth:`write` and the same settings: the damaged images count as missing.

        Args:
            round: number of the round.
            progress: show a progress bar if tqdm is installed.

        Returns:
            All missing or damaged files, relative to ``root``; empty if there are none.

        Raises:
            TypeError: ``round`` is not an int.
            ValueError: there is no such round, or it is not complete.
        """
        self._check_complete(round)
        folder = self._folder(round)
        return [f"{folder.name}/{path}" for path in all_damaged(folder, round, self.threads, progress)]

    def disk_bytes(self, round: int) -> int:
        """Measure the disk space of a round, complete or not.

        Args:
            round: number of the round.

        Returns:
            The sum of the sizes of all files in its folder.

        Raises:
            TypeError: ``round`` is not an int.
            ValueError: there is no such round.
        """
        folder = self._folder(round)
        if not folder.is_dir():
            raise ValueError(f"`round`: expected one of {self._existing()}, got {round}")
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def _folder(self, round: int) -> Path:
        _checks.check_count(round, "round", minimum=0)
        return folder_of(self.root, int(round))

    def _existing(self) -> list[int]:
        return existing_rounds(self.root)

    def _complete(self, round: int) -> bool:
        path = self._folder(round) / MANIFEST
        return path.exists() and _files.read_json(path)["complete"] is True

    def _check_complete(self, round: int) -> None:
        if not (self._folder(round) / MANIFEST).exists():
            state = "which is not complete" if round in self._existing() else "which does not exist"
            raise ValueError(f"`round`: expected a complete round, got {round}, {state}")
