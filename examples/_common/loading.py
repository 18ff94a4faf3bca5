"""Batches by number: step 7 holds the same images with the same augmentations whenever and wherever it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from _common.run import Run

Transform = Callable[..., tuple[Any, ...]]


class Batches:
    """Random batches of a data set, shared among ranks.

    Args:
        dataset: its items are (image, labels) or (image, labels, further maps).
        run: says how large a batch is, and which part is this rank's.
        name: of the stage; other names draw others.
        transform: called with an item's parts; draws from torch's generator, which is seeded for each image.
        order: numbers of the images to take, in order; None for one random permutation after the other.
    """

    def __init__(
        self, dataset: Dataset[Any], run: Run, name: str, transform: Transform, order: Sequence[int] | None = None
    ) -> None:
        self.dataset, self.run, self.name, self.transform, self.order = dataset, run, name, transform, order
        self._next, self._batches = -1, iter(())
        self._epoch, self._permutation = -1, torch.empty(0)

    def __getitem__(self, number: int) -> tuple[Any, ...]:
        """Batch ``number``, on the device; the next one is read meanwhile if there are workers."""
        if number != self._next:
            args = self.run.args
            loader = DataLoader(
                _Seeded(self.dataset, self.transform),
                batch_sampler=_Plan(self, number),
                num_workers=args.workers,
                pin_memory=self.run.device.type == "cuda",
                persistent_workers=False,
                generator=torch.Generator(),  # or else a loader's start would move torch's own, after a resume only
            )
            self._batches = _named(loader)
        self._next = number + 1
        # Unlabelled images come with their names.
        return tuple(
            part.to(self.run.device, non_blocking=True) if isinstance(part, Tensor) else part
            for part in next(self._batches)
        )

    def plan(self, number: int) -> list[tuple[int, int]]:
        """(number of the image, seed) for each image of this rank's part of a batch."""
        size, world = self.run.args.batch, self.run.world
        places = range(
            number * size + self.run.rank * size // world, number * size + (self.run.rank + 1) * size // world
        )
        return [(self._image(place), self.run.seed(self.name, "image", place)) for place in places]

    def _image(self, place: int) -> int:
        if self.order is not None:
            return int(self.order[place % len(self.order)])
        epoch, place = divmod(place, len(self.dataset))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.run.seed(self.name, "epoch", epoch))
            self._epoch, self._permutation = epoch, torch.randperm(len(self.dataset), generator=generator)
        return int(self._permutation[place])


class Unreadable(Exception):
    """An image or mask that cannot be read; its text says which, and why."""


def _read(dataset: Dataset[Any], index: int) -> Any:
    try:
        return dataset[index]
    except (OSError, ValueError) as error:
        raise Unreadable(str(error).replace("\n", " ")) from error


def _named(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield batches; end with one line where a file cannot be read."""
    try:
        yield from loader
    except Unreadable as error:
        # A worker's traceback comes as the text of its error, which ends with the original one's.
        raise SystemExit(str(error).rstrip().rpartition("\n")[2].rpartition("Unreadable: ")[2]) from None


class _Some(Dataset[Any]):
    """Some samples of a data set."""

    def __init__(self, dataset: Dataset[Any], places: Sequence[int]) -> None:
        self.dataset, self.places = dataset, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Any:
        return _read(self.dataset, self.places[index])


class _Plan:
    def __init__(self, batches: Batches, start: int) -> None:
        self.batches, self.number = batches, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        while True:
            yield self.batches.plan(self.number)
            self.number += 1


class _Seeded(Dataset[Any]):
    def __init__(self, dataset: Dataset[Any], transform: Transform) -> None:
        self.dataset, self.transform = dataset, transform

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, ...]:
        index, seed = key
        parts = _read(self.dataset, index)
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds the GPUs, too
        try:
            return self.transform(*parts)
        finally:
            torch.set_rng_state(state)


def in_order(dataset: Dataset[Any], run: Run, indices: Sequence[int], *, size: int | None = None) -> Iterator[Any]:
    """Yield batches of a data set in order, images as floats in [0, 1]; of the given images only."""
    subset = _Some(dataset, list(indices))
    settings = {"num_workers": run.args.workers, "collate_fn": _collate, "generator": torch.Generator()}
    loader = DataLoader(subset, batch_size=size or 1, **settings)
    for images, others in _named(loader):
        yield as_floats(images.to(run.device)), others.to(run.device) if isinstance(others, Tensor) else others


def as_floats(images: Tensor) -> Tensor:
    """Convert uint8 images to float32 in [0, 1], channels last."""
    images = images.float() / 255 if images.dtype == torch.uint8 else images
    return images.contiguous(memory_format=torch.channels_last)


def _collate(items: list[Any]) -> tuple[Tensor, Any]:
    images, others = zip(*items, strict=True)
    return default_collate(list(images)), default_collate(list(others))
