"""Torch's DataLoader: random batches that can be resumed, and all images in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from _common.settings import Unreadable

if TYPE_CHECKING:
    from _common.run import Run

Transform = Callable[..., tuple[Any, ...]]
_PIXELS_AT_ONCE = 25 * 64 * 128  # small images are predicted together, large ones one by one


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Batch sampler by number: a batch holds the same images and seeds whenever and wherever it is asked for.

    Args:
        run: says how large a batch is, and which part is this process's.
        name: of the stage; other names draw others.
        length: images in the data set.
        order: numbers of the images to take, in order; None for one random permutation after the other.
    """

    def __init__(self, run: Run, name: str, length: int, order: Sequence[int] | None = None) -> None:
        self.run, self.name, self.length, self.order = run, name, length, order
        self.first = 0  # batch to begin with
        self._epoch, self._permutation = -1, torch.empty(0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        number = self.first
        while True:
            yield self.batch(number)
            number += 1

    def batch(self, number: int) -> list[tuple[int, int]]:
        """(number of the image, seed) for each image of this process's part of a batch."""
        size, rank, world = self.run.settings.batch, self.run.rank, self.run.world
        places = range(number * size + rank * size // world, number * size + (rank + 1) * size // world)
        return [(self._image(place), self.run.seed(self.name, "image", place)) for place in places]

    def _image(self, place: int) -> int:
        if self.order is not None:
            return int(self.order[place % len(self.order)])
        epoch, place = divmod(place, self.length)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.run.seed(self.name, "epoch", epoch))
            self._epoch, self._permutation = epoch, torch.randperm(self.length, generator=generator)
        return int(self._permutation[place])


def loader_of(
    dataset: Dataset[Any], run: Run, name: str, transform: Transform, order: Sequence[int] | None = None
) -> DataLoader[Any]:
    """Random batches of a stage, without end. ``transform`` gets an item's parts, and a generator seeded for each."""
    return DataLoader(
        _Seeded(dataset, transform),
        batch_sampler=StepSampler(run, name, len(dataset), order),
        num_workers=run.settings.workers,
        pin_memory=run.device.type == "cuda",
        generator=torch.Generator(),  # or else a loader's start would move torch's own, after a resume only
    )


def in_blocks(dataset: Dataset[Any], run: Run) -> Iterator[tuple[Tensor, Any]]:
    """Yield (images, labels or names) in order: neighbours of one size together, images as floats in [0, 1].

    A convolution may round otherwise in another batch. So images are put together by their place in the data set, and
    processes share whole blocks: a prediction is the same on any number of processes, and after a restart.
    """
    size = run.settings.predict_batch or max(1, _PIXELS_AT_ONCE // _Plain(dataset)[0][0][0].numel())
    blocks = [range(first, min(first + size, len(dataset))) for first in range(0, len(dataset), size)]
    mine = blocks[run.rank :: run.world]
    workers = {"num_workers": run.settings.workers, "generator": torch.Generator()}
    for items in DataLoader(_Plain(dataset), batch_sampler=mine, collate_fn=list, **workers):
        groups: dict[tuple[Any, ...], list[Any]] = {}
        for image, other in items:
            groups.setdefault((image.shape, getattr(other, "shape", None)), []).append((image, other))
        for group in groups.values():
            most = run.settings.predict_batch or max(1, _PIXELS_AT_ONCE // group[0][0][0].numel())
            for first in range(0, len(group), most):
                images, others = default_collate(group[first : first + most])
                others = others.to(run.device) if isinstance(others, Tensor) else list(others)
                yield as_floats(images.to(run.device)), others


def one_by_one(dataset: Dataset[Any], run: Run, size: int = 1) -> Iterator[tuple[Tensor, Any]]:
    """Yield batches of ``size`` of every N-th image in order, N being the number of processes."""
    mine = torch.utils.data.Subset(_Plain(dataset), range(run.rank, len(dataset), run.world))
    workers = {"num_workers": run.settings.workers, "generator": torch.Generator()}
    for images, names in DataLoader(mine, batch_size=size, **workers):
        yield as_floats(images.to(run.device)), list(names)


def as_floats(images: Tensor) -> Tensor:
    """Convert uint8 images to float32 in [0, 1], channels last."""
    images = images.float() / 255 if images.dtype == torch.uint8 else images
    return images.contiguous(memory_format=torch.channels_last)


class _Plain(Dataset[Any]):
    """The items as they are; what cannot be read says so."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        try:
            return self.dataset[index]
        except (OSError, ValueError) as error:
            raise Unreadable(str(error).replace("\n", " ")) from error


class _Seeded(_Plain):
    def __init__(self, dataset: Dataset[Any], transform: Transform) -> None:
        super().__init__(dataset)
        self.transform = transform

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, ...]:
        index, seed = key
        parts = super().__getitem__(index)
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds the GPUs, too
        try:
            return self.transform(*parts)
        finally:
            torch.set_rng_state(state)
