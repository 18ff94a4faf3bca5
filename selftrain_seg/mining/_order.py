"""Base class of the samplers: one global order of images, its division among ranks, and its state for resuming."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

from selftrain_seg import _checks
from selftrain_seg.mining.index import ClassIndex

# This many consecutive positions share one seed.
_BLOCK = 512
_UNIFORM, _SHUFFLE = 0, 1


class Randomness:
    """Random numbers that depend only on seed, epoch and position, so the generator has no state to save."""

    def __init__(self, seed: int, epoch: int) -> None:
        self.seed, self.epoch = seed, epoch
        self._block = -1
        self._numbers: list[list[float]] = []

    def uniform(self, place: int) -> list[float]:
        """Return the two numbers in [0, 1) of a position in the order."""
        block, row = divmod(place, _BLOCK)
        if block != self._block:
            source = np.random.default_rng([self.seed, self.epoch, _UNIFORM, block])
            self._block, self._numbers = block, [list(map(float, pair)) for pair in source.random((_BLOCK, 2))]
        return self._numbers[row]

    def shuffle(self, images: np.ndarray[Any, Any], label: int, turn: int) -> np.ndarray[Any, Any]:
        """Return a class's images in the random order of its ``turn``-th pass."""
        source = np.random.default_rng([self.seed, self.epoch, _SHUFFLE, label, turn])
        return source.permutation(images)


class Order:
    """The part of one epoch's order drawn so far, shared by all iterators of that epoch."""

    def __init__(self, first: int = 0, ranks: int = 1, pending: bytes = b"") -> None:
        self.first = first  # where each rank's iterators start: the images it consumed before a restart
        self.base = first * ranks  # the global position of ``images[0]``
        self.images = array("i", pending)
        self.iterators: list[Place] = []


class Place:
    """How many images of the epoch an iterator has yielded."""

    def __init__(self, taken: int) -> None:
        self.taken = taken


class ClassSampler(Sampler[int]):
    """Draws images one after another from ``self._lists``; subclasses implement :meth:`_next`."""

    def __init__(
        self,
        index: ClassIndex,
        min_share: float,
        candidates: Tensor | None,
        num_samples: int | None,
        seed: int,
        rank: int | None,
        num_replicas: int | None,
    ) -> None:
        _check_index(index)
        total = len(index) if num_samples is None else num_samples
        _checks.check_count(total, "index" if num_samples is None else "num_samples")
        _checks.check_count(seed, "seed", minimum=0)
        self.rank, self.num_replicas = _place(rank, num_replicas)
        self.num_samples = math.ceil(total / self.num_replicas)
        self.index, self.min_share, self.seed = index, min_share, int(seed)
        self._start(0)
        self.update(candidates=candidates)

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch; its order depends only on seed, epoch and classes.

        A plain loop does not need this: each complete iteration is followed by the next epoch. After
        :meth:`load_state_dict`, calling it with the number of the interrupted epoch resumes that epoch.

        Args:
            epoch: at least 0.

        Raises:
            TypeError: ``epoch`` is not an int.
            ValueError: ``epoch`` is negative.
        """
        _checks.check_count(epoch, "epoch", minimum=0)
        if not (self._resumes and epoch == self.epoch and not self._ended()):
            self._start(int(epoch))

    def update(self, index: ClassIndex | None = None, *, candidates: Tensor | None = None) -> None:
        """Change the class counts or candidates for all further draws, also within an epoch.

        The main process draws the indices, so running DataLoader workers follow too, after the batches they have
        already been asked for. Call it with the same arguments on all ranks at the same step.

        Args:
            index: new class counts of the same images; None keeps the current ones.
            candidates: (N, C) bool, which classes of which images may be drawn, such as
                ``ReliabilityBank.candidates``; None for all.

        Raises:
            TypeError: ``index`` is not a ClassIndex, ``candidates`` is not a bool tensor.
            ValueError: ``index`` has another number of images or classes; ``candidates`` is not (N, C); no
                image shows a class that may be drawn.
        """
        index = self.index if index is None else index
        self.candidates, self._contains = self._drawable_classes(index, candidates)
        self.index = index
        classes, images = np.nonzero(self._contains.T)
        sizes = np.bincount(classes, minlength=index.num_classes)
        self._lists = np.split(images.astype(np.int32), sizes.cumsum()[:-1])
        self._changed()

    def _drawable_classes(self, index: Any, candidates: Any) -> tuple[Tensor | None, np.ndarray[Any, Any]]:
        """Check the arguments of :meth:`update`; return a copy of the candidates and (N, C) bool: what may be drawn."""
        _check_index(index)
        shape = self.index.counts.shape
        if index.counts.shape != shape:
            raise ValueError(f"`index`: expected (N, C) = {tuple(shape)}, got {tuple(index.counts.shape)}")
        contains = index.contains(self.min_share)
        if candidates is not None:
            _checks.check_tensor(candidates, "candidates")
            if candidates.dtype != torch.bool:
                raise TypeError(f"`candidates`: expected dtype torch.bool, got {candidates.dtype}")
            if candidates.shape != shape:
                raise ValueError(f"`candidates`: expected (N, C) = {tuple(shape)}, got {tuple(candidates.shape)}")
            candidates = candidates.detach().to("cpu", copy=True)
            contains &= candidates
        if not bool(contains.any()):
            name = "index" if candidates is None else "candidates"
            raise ValueError(f"`{name}`: expected at least one image with a class that may be drawn, got none")
        return candidates, np.asarray(contains)

    def __iter__(self) -> Iterator[int]:
        """Start an epoch, or resume one after :meth:`load_state_dict`.

        If an iteration of the current epoch has finished, the next epoch starts. Otherwise the iterator yields the
        images of the current epoch from the start, independently of its other iterators.

        Warns:
            UserWarning: this epoch starts for the third time without having finished: a loop that stops early sees
                the same images each time.
        """
        if self._ended():
            self._start(self.epoch + 1)
        self._resumes = False
        if len(self._order.iterators) == 2:
            warnings.warn(
                f"epoch {self.epoch} of this sampler starts for the third time, but no iteration has finished it, so"
                f" the images are the same each time; call set_epoch({self.epoch + 1}) for others",
                stacklevel=2,
            )
        place = Place(self._order.first)
        self._order.iterators.append(place)
        return self._iterate(self._order, place)

    def _iterate(self, order: Order, place: Place) -> Iterator[int]:
        while place.taken < self.num_samples:
            end = (place.taken + 1) * self.num_replicas
            while order.base + len(order.images) < end:
                if order is not self._order:
                    raise RuntimeError(
                        "this iterator's epoch is over: its sampler has started another epoch (by set_epoch,"
                        " load_state_dict or a new iteration) before the iterator was finished"
                    )
                order.images.append(self._next(order.base + len(order.images)))
            image = order.images[end - self.num_replicas + self.rank - order.base]
            place.taken += 1
            yield image

    def _ended(self) -> bool:
        """Whether an iteration of the current epoch has finished."""
        order = self._order
        return any(taken >= self.num_samples for taken in (order.first, *(place.taken for place in order.iterators)))

    def _taken(self) -> int:
        """Number of images yielded by the newest unfinished iterator; all of them if every iterator has finished."""
        order = self._order
        if not order.iterators:
            return order.first
        return next((p.taken for p in reversed(order.iterators) if p.taken < self.num_samples), self.num_samples)

    def state_dict(self, *, consumed: int | None = None) -> dict[str, Any]:
        """Return the state to resume the current epoch from.

        A DataLoader with workers requests indices ahead of the batches it returns. With ``consumed``, the images that
        were requested but not trained on come first after resuming.

        Args:
            consumed: images of this epoch that each rank has trained on, such as steps × batch size; None for the
                number that the newest unfinished iterator has yielded.

        Returns:
            Tensors and numbers that ``torch.load(weights_only=True)`` reads. All ranks return the same state, so
            saving it on one rank is enough.

        Raises:
            TypeError: ``consumed`` is not an int.
            ValueError: ``consumed`` is negative, larger than the number of images drawn, or smaller than at the
                point where this sampler was resumed.
        """
        order = self._order
        consumed = self._taken() if consumed is None else consumed
        _checks.check_count(consumed, "consumed", minimum=order.first)
        drawn = max((place.taken for place in order.iterators), default=order.first)
        if consumed > drawn:
            raise ValueError(f"`consumed`: expected at most the {drawn} images drawn, got {consumed}")
        pending = order.images[consumed * self.num_replicas - order.base :]
        return {
            "settings": {"sampler": type(self).__name__, **self._settings()},
            "epoch": self.epoch,
            "seed": self.seed,
            "num_replicas": self.num_replicas,
            "consumed": int(consumed),
            "pending": torch.tensor(pending, dtype=torch.int32),
            "candidates": self.candidates,
            "contains": _digest(self._contains),
            "draw": self._draw_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume the epoch of a saved state at the next ``iter``; the data and the number of ranks must be the same.

        Args:
            state: from :meth:`state_dict`.

        Raises:
            ValueError: ``state`` is not a sampler's, or comes from another class of sampler, other settings, another
                number of ranks, or other images or classes.
        """
        missing = {"settings", "epoch", "seed", "num_replicas", "consumed", "pending", "candidates", "contains", "draw"}
        missing -= set(state)
        if missing:
            raise ValueError(f"`state`: expected the state of a sampler, got one without {', '.join(sorted(missing))}")
        own = {"sampler": type(self).__name__, **self._settings()}
        if state["settings"] != own:
            raise ValueError(f"`state`: expected the state of a sampler with {own}, got one with {state['settings']}")
        if state["num_replicas"] != self.num_replicas:
            raise ValueError(f"`state`: expected {self.num_replicas} ranks, got {state['num_replicas']}")
        if _digest(self._drawable_classes(self.index, state["candidates"])[1]) != state["contains"]:
            raise ValueError("`state`: expected the state of a sampler with the same index and min_share, got another")
        self.update(candidates=state["candidates"])
        self.seed = int(state["seed"])
        self._start(int(state["epoch"]))
        pending = np.asarray(state["pending"], dtype=np.intc).tobytes()
        self._order = Order(int(state["consumed"]), self.num_replicas, pending)
        self._resumes = True
        self._load_draw_state(state["draw"])

    def _start(self, epoch: int) -> None:
        self.epoch = epoch
        self._random = Randomness(self.seed, epoch)
        self._order = Order()
        self._resumes = False
        self._begin()

    def _settings(self) -> dict[str, Any]:
        """Settings that change the order, in addition to seed, epoch and classes."""
        return {}

    def _begin(self) -> None:
        """Reset the state of drawing at the start of an epoch."""

    def _changed(self) -> None:
        """Follow a change of ``self._lists``, the images that may be drawn for each class."""

    def _next(self, place: int) -> int:
        """Draw the image at a position in the global order; called once per position, in order."""
        raise NotImplementedError

    def _draw_state(self) -> dict[str, Any]:
        return {}

    def _load_draw_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`_draw_state` returned, after the lists are set."""


def _digest(contains: np.ndarray[Any, Any]) -> str:
    """Digest of the classes that may be drawn in each image."""
    return hashlib.sha256(np.packbits(contains).tobytes()).hexdigest()


def _check_index(index: Any) -> None:
    if not isinstance(index, ClassIndex):
        raise TypeError(f"`index`: expected a ClassIndex, got {type(index).__name__}")


def _place(rank: int | None, num_replicas: int | None) -> tuple[int, int]:
    """Return (rank, number of ranks); torch.distributed supplies what is None."""
    grouped = dist.is_available() and dist.is_initialized()
    processes = os.environ.get("WORLD_SIZE", "1")
    if not grouped and rank is None and (num_replicas not in (None, 1) or (num_replicas is None and processes != "1")):
        raise ValueError(
            f"`rank`: expected a rank, as {processes if num_replicas is None else num_replicas} processes run without"
            " a process group, got None: all of them would draw the images of rank 0; make the sampler after"
            " torch.distributed.init_process_group, or pass `rank` and `num_replicas`"
        )
    if num_replicas is None:
        num_replicas = dist.get_world_size() if grouped else 1
    _checks.check_count(num_replicas, "num_replicas")
    if rank is None:
        rank = dist.get_rank() if grouped else 0
    _checks.check_count(rank, "rank", minimum=0)
    if rank >= num_replicas:
        raise ValueError(f"`rank`: expected at most {num_replicas - 1}, got {rank}")
    return int(rank), int(num_replicas)
