"""Load images with torch's DataLoader: random batches that can be resumed, or all images in order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

if TYPE_CHECKING:
    from _common.run import Run

_PIXELS_AT_ONCE = 25 * 64 * 128  # in a batch of prediction, if it has several images


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Batch sampler whose batches depend only on their number: a resumed run draws the same images and seeds.

    Args:
        run: gives the batch size and the share of this process.
        name: of the stage; each name has its own permutations and seeds.
        length: number of images in the data set.
        order: indices of the images to draw, in order; None for random permutations, one after the other.
        batch: images in a batch over all processes; None for ``--batch``.
    """

    def __init__(
        self, run: Run, name: str, length: int, order: Sequence[int] | None = None, batch: int | None = None
    ) -> None:
        self.run, self.name, self.length, self.order = run, name, length, order
        self.size = batch or run.settings.batch
        self.first = 0  # number of the first batch
        self._epoch = -1

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield lists of (index of an image, seed), the share of this process in each batch, without end."""
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
    """Yield batches of (images, labels or names) in order, the images as floats in [0, 1].

    A batch holds images of one size from one block of neighbours. Processes share whole blocks. A convolution may round
    differently in another batch, so this gives the same predictions on any number of processes and after a restart.

    Args:
        dataset: its items are (image, labels or name).
        run: gives the blocks of this process.
        size: of a block; by default ``--predict-batch``, or the number of images that have 204,800 pixels.
    """

    def batch_size(image: Tensor) -> int:
        return size or run.settings.predict_batch or max(1, _PIXELS_AT_ONCE // image[0].numel())

    step = batch_size(Readable(dataset)[0][0])
    blocks = [range(first, min(first + step, len(dataset))) for first in range(0, len(dataset), step)]
    # Without a generator, starting workers would advance torch's global one, but only in a resumed run.
    workers = {"num_workers": run.settings.workers, "generator": torch.Generator()}
    for items in DataLoader(Readable(dataset), batch_sampler=blocks[run.rank :: run.world], collate_fn=list, **workers):
        groups: dict[tuple[Any, ...], list[Any]] = {}
        for image, other in items:
            groups.setdefault((image.shape, getattr(other, "shape", None)), []).append((image, other))
        for group in groups.values():
            count = batch_size(group[0][0])
            for first in range(0, len(group), count):
                images, others = default_collate(group[first : first + count])
                others = others.to(run.device) if isinstance(others, Tensor) else list(others)
                yield as_floats(images.to(run.device)), others


def as_floats(images: Tensor) -> Tensor:
    """Convert uint8 images to float32 in [0, 1], in channels-last memory format."""
    images = images.float() / 255 if images.dtype == torch.uint8 else images
    return images.contiguous(memory_format=torch.channels_last)


class Unreadable(Exception):
    """An image or mask cannot be read; the text names the file and the reason."""


class Readable(Dataset[Any]):
    """A data set that raises ``Unreadable`` if an item cannot be read."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        try:
            return self.dataset[index]
        except (OSError, ValueError) as error:
            raise Unreadable(str(error).replace("\n", " ")) from error


class Seeded(Readable):
    """A data set with a random transform, with a seed for each item."""

    def __init__(self, dataset: Dataset[Any], transform: Callable[..., tuple[Any, ...]]) -> None:
        super().__init__(dataset)
        self.transform = transform

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, ...]:
        index, seed = key
        parts = super().__getitem__(index)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs
            return self.transform(*parts)
