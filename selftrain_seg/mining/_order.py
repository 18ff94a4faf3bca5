"""The frame of the samplers: one global order of images, its parts for the ranks, and how to resume it."""

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

# Random numbers of this many places of the order come from one seed.
_BLOCK = 512
_UNIFORM, _SHUFFLE = 0, 1


class Randomness:
    """Random numbers that depend on seed, epoch and place only, so that nothing of them need be saved."""

    def __init__(self, seed: int, epoch: int) -> None:
        self.seed, self.epoch = seed, epoch
        self._block = -1
        self._numbers: list[list[float]] = []

    def uniform(self, place: int) -> list[float]:
        """Two numbers in [0, 1) for a place of the order."""
        block, row = divmod(place, _BLOCK)
        if block != self._block:
            source = np.random.default_rng([self.seed, self.epoch, _UNIFORM, block])
            self._block, self._numbers = block, [list(map(float, pair)) for pair in source.random((_BLOCK, 2))]
        return self._numbers[row]

    def shuffle(self, images: np.ndarray[Any, Any], label: int, turn: int) -> np.ndarray[Any, Any]:
        """A class's list of images in the random order of its ``turn``-th pass."""
        source = np.random.default_rng([self.seed, self.epoch, _SHUFFLE, label, turn])
        return source.permutation(images)


class Order:
    """The order of one epoch, as far as it is drawn: one for all iterators, each of which has a place in it."""

    def __init__(self, first: int = 0, ranks: int = 1, pending: bytes = b"") -> None:
        self.first = first  # where iterators of a rank begin: after what was consumed before a restart
        self.base = first * ranks  # the global place of the first image that is known here
        self.images = array("i", pending)
        self.iterators: list[Place] = []


class Place:
    """How many images of the epoch an iterator has given out."""

    def __init__(self, taken: int) -> None:
        self.taken = taken


class ClassSampler(Sampler[int]):
    """Draws images one after another from ``self._lists``; a subclass says how (:meth:`_next`)."""

    def __init__(
        self,
        index: ClassIndex,
        *,
        num_samples: int | None,
        min_share: float,
        candidates: Tensor | None,
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
        """Choose the epoch that begins next: its order is the same whenever seed, epoch and classes are the same.

        Not needed in a plain loop, where epochs follow one another: once an iteration has reached its end, the next
        one is of the next epoch. After :meth:`load_state_dict`, the number of the epoch that was left goes on with it.

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
        """Draw by other classes from the next image on, in the middle of an epoch too.

        Indices are drawn in the main process, so this takes effect whatever workers are running, after the few
        batches they have been asked for already. Every rank must be given the same at the same step.

        Args:
            index: new class counts of the same images; None keeps the present ones.
            candidates: (N, C) bool, which classes of which images may be drawn, such as
                ``ReliabilityBank.candidates``; None for all.

        Raises:
            TypeError: ``index`` is not a ClassIndex, ``candidates`` is not a bool tensor.
            ValueError: ``index`` has not as many images and classes as before; ``candidates`` is not (N, C); no
                image shows a class that may be drawn.
        """
        index = self.index if index is None else index
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
        self.index, self.candidates = index, candidates
        self._contains = np.asarray(contains)
        classes, images = np.nonzero(self._contains.T)
        sizes = np.bincount(classes, minlength=index.num_classes)
        self._lists = np.split(images.astype(np.int32), sizes.cumsum()[:-1])
        self._changed()

    def __iter__(self) -> Iterator[int]:
        """Begin an epoch, or go on where a loaded state left it.

        If an iteration of the running epoch has reached its end, the next epoch begins. Otherwise the iterator is one
        more of the running epoch: it gives the same images, from the start, and disturbs no other.

        Warns:
            UserWarning: the epoch is begun for the third time and no iteration has reached its end: a loop that
                breaks off early shows the same images again and again.
        """
        if self._ended():
            self._start(self.epoch + 1)
        self._resumes = False
        if len(self._order.iterators) == 2:
            warnings.warn(
                f"epoch {self.epoch} of this sampler is begun for the third time, and no iteration has reached its"
                f" end: the images are the same each time. Call set_epoch({self.epoch + 1}) for others",
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
                        "this iterator is of an epoch that is over: its sampler has begun another one (by set_epoch,"
                        " load_state_dict or a new iteration) before all of its images were drawn"
                    )
                order.images.append(self._next(order.base + len(order.images)))
            image = order.images[end - self.num_replicas + self.rank - order.base]
            place.taken += 1
            yield image

    def _ended(self) -> bool:
        """Whether an iteration of the running epoch has reached its end."""
        order = self._order
        return any(taken >= self.num_samples for taken in (order.first, *(place.taken for place in order.iterators)))

    def _taken(self) -> int:
        """Images that the newest iterator that has not ended has given out; all if each has."""
        order = self._order
        if not order.iterators:
            return order.first
        return next((p.taken for p in reversed(order.iterators) if p.taken < self.num_samples), self.num_samples)

    def state_dict(self, *, consumed: int | None = None) -> dict[str, Any]:
        """Return all that is needed to go on where the epoch was left.

        A DataLoader with workers asks for indices ahead of the batches it hands out. Give ``consumed``, and the
        images asked for but not yet trained on come first after resuming.

        Args:
            consumed: images of this epoch that each rank has trained on, such as steps × batch size; None for as
                many as the newest iterator that has not ended has given out.

        Returns:
            Tensors and numbers, fit for ``torch.load(weights_only=True)``. The same on all ranks, so that of one
            serves all.

        Raises:
            TypeError: ``consumed`` is not an int.
            ValueError: ``consumed`` is negative, more than were drawn, or before the place where this sampler was
                itself resumed.
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
            "contains": self._digest(),
            "draw": self._draw_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a sampler of the same data and number of ranks was left, with the next ``iter``.

        Args:
            state: from :meth:`state_dict`.

        Raises:
            ValueError: ``state`` was made by another sampler or with other settings, with another number of ranks,
                or of other images or classes; or it is none of a sampler.
        """
        missing = {"settings", "epoch", "seed", "num_replicas", "consumed", "pending", "candidates", "contains", "draw"}
        missing -= set(state)
        if missing:
            raise ValueError(f"`state`: expected that of a sampler, got one without {', '.join(sorted(missing))}")
        own = {"sampler": type(self).__name__, **self._settings()}
        if state["settings"] != own:
            raise ValueError(f"`state`: expected that of a sampler with {own}, got one with {state['settings']}")
        if state["num_replicas"] != self.num_replicas:
            raise ValueError(f"`state`: expected {self.num_replicas} ranks, got {state['num_replicas']}")
        before = self.candidates
        self.update(candidates=state["candidates"])
        if self._digest() != state["contains"]:
            self.update(candidates=before)
            raise ValueError("`state`: expected that of a sampler with the same index and min_share, got another")
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

    def _digest(self) -> str:
        """Of the classes that may be drawn, image by image."""
        return hashlib.sha256(np.packbits(self._contains).tobytes()).hexdigest()

    def _settings(self) -> dict[str, Any]:
        """What changes the order, beside seed, epoch and classes."""
        return {}

    def _begin(self) -> None:
        """An epoch starts: forget what was drawn."""

    def _changed(self) -> None:
        """``self._lists``, the images that may be drawn for each class, have become others."""

    def _next(self, place: int) -> int:
        """Draw the image at a place of the global order; called once for every place, in order."""
        raise NotImplementedError

    def _draw_state(self) -> dict[str, Any]:
        return {}

    def _load_draw_state(self, state: dict[str, Any]) -> None:
        """Set what :meth:`_draw_state` told; the lists are in place."""


def _check_index(index: Any) -> None:
    if not isinstance(index, ClassIndex):
        raise TypeError(f"`index`: expected a ClassIndex, got {type(index).__name__}")


def _place(rank: int | None, num_replicas: int | None) -> tuple[int, int]:
    """This process among the ranks; both from torch.distributed where they are not given."""
    together = dist.is_available() and dist.is_initialized()
    processes = os.environ.get("WORLD_SIZE", "1")
    if not together and rank is None and (num_replicas not in (None, 1) or (num_replicas is None and processes != "1")):
        raise ValueError(
            f"`rank`: expected it with {processes if num_replicas is None else num_replicas} processes that have no"
            " process group, got None: all of them would draw the images of rank 0; make the sampler after"
            " torch.distributed.init_process_group, or give `rank` and `num_replicas`"
        )
    if num_replicas is None:
        num_replicas = dist.get_world_size() if together else 1
    _checks.check_count(num_replicas, "num_replicas")
    if rank is None:
        rank = dist.get_rank() if together else 0
    _checks.check_count(rank, "rank", minimum=0)
    if rank >= num_replicas:
        raise ValueError(f"`rank`: expected at most {num_replicas - 1}, got {rank}")
    return int(rank), int(num_replicas)
