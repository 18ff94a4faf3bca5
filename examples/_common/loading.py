"""Random batches that can be resumed, and all images in order, for torch's DataLoader."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

if TYPE_CHECKING:
    from _common.run import Run

_PIXELS_AT_ONCE = 25 * 64 * 128  # small images are predicted together, large ones one by one


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Batch sampler by number: a batch holds the same images and seeds whenever and wherever it is asked for.

    Args:
        run: says how large a batch is, and which part is this process's.
        name: of the stage; other names draw others.
        length: images in the data set.
        order: numbers of the images to take, in order; None for one random permutation after the other.
        batch: images in a batch of all processes; None for ``--batch``.
    """

    def __init__(
        self, run: Run, name: str, length: int, order: Sequence[int] | None = None, batch: int | None = None
    ) -> None:
        self.run, self.name, self.length, self.order = run, name, length, order
        self.size = batch or run.settings.batch
        self.first = 0  # batch to begin with
        self._epoch = -1

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield (number of the image, seed) for each image of this process's part of a batch, without end."""
        share = self.size // self.run.world
        for part in itertools.count(self.first * self.run.world + self.run.rank, self.run.world):
            places = range(part * share, (part + 1) * share)
            yield [(self._image(place), self.run.seed(self.name, "image", place)) for place in places]

    def _image(self, place: int) -> int:
        if self.order is not None:
            return self.order[place % len(self.order)]
        epoch, place = divmod(place, self.length)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.run.seed(self.name, "epoch", epoch))
            self._epoch, self._permutation = epoch, torch.randperm(self.length, generator=generator).tolist()
        return self._permutation[place]


def in_blocks(dataset: Dataset[Any], run: Run, size: int = 0) -> Iterator[tuple[Tensor, Any]]:
    """Yield (images, labels or names) in order: neighbours of one size together, images as floats in [0, 1].

    A convolution may round otherwise in another batch. So images are put together by their place in the data set, and
    processes share whole blocks: a prediction is the same on any number of processes, and after a restart.

    Args:
        dataset: its items are (image, labels or name).
        run: says which blocks are this process's.
        size: of a block; by default ``--predict-batch``, or as many images as are small.
    """

    def most(image: Tensor) -> int:
        return size or run.settings.predict_batch or max(1, _PIXELS_AT_ONCE // image[0].numel())

    step = most(Plain(dataset)[0][0])
    blocks = [range(first, min(first + step, len(dataset))) for first in range(0, len(dataset), step)]
    # A generator, or else the start of workers would move torch's own, after a resume only.
    workers = {"num_workers": run.settings.workers, "generator": torch.Generator()}
    for items in DataLoader(Plain(dataset), batch_sampler=blocks[run.rank :: run.world], collate_fn=list, **workers):
        groups: dict[tuple[Any, ...], list[Any]] = {}
        for image, other in items:
            groups.setdefault((image.shape, getattr(other, "shape", None)), []).append((image, other))
        for group in groups.values():
            count = most(group[0][0])
            for first in range(0, len(group), count):
                images, others = default_collate(group[first : first + count])
                others = others.to(run.device) if isinstance(others, Tensor) else list(others)
                yield as_floats(images.to(run.device)), others


def as_floats(images: Tensor) -> Tensor:
    """Convert uint8 images to float32 in [0, 1], channels last."""
    images = images.float() / 255 if images.dtype == torch.uint8 else images
    return images.contiguous(memory_format=torch.channels_last)


class Unreadable(Exception):
    """An image or mask that cannot be read; its text says which, and why."""


class Plain(Dataset[Any]):
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


class Seeded(Plain):
    """The items after a transform that draws from torch's generator, seeded for each item."""

    def __init__(self, dataset: Dataset[Any], transform: Callable[..., tuple[Any, ...]]) -> None:
        super().__init__(dataset)
        self.transform = transform

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, ...]:
        index, seed = key
        parts = super().__getitem__(index)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds the GPUs, too
            return self.transform(*parts)
