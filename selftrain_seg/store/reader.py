"""Complete rounds: every file is checked against the manifest when it is read."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from selftrain_seg.store._encode import KINDS
from selftrain_seg.store._files import IMAGES, MANIFEST, Record, digest, read_json
from selftrain_seg.store._names import file_of
from selftrain_seg.store._png import decode
from selftrain_seg.store._settings import RoundSettings, from_content
from selftrain_seg.store.soft import expand_soft
from selftrain_seg.types import PseudoLabels

__all__ = ["PseudoLabelDataset", "StoredRound"]


class StoredRound:
    """A complete round of pseudo-labels, as :meth:`PseudoLabelStore.round` opens it.

    Its tables are in memory, about 250 bytes an image and file; the maps are read when asked for, and compared with
    the manifest's checksums then. It can be pickled, so it serves the workers of a DataLoader however they start.

    Args:
        folder: of the round.

    Attributes:
        settings: what the round was begun with, a ``RoundSettings``.
        names: of all images, in order.
        thresholds: (C,) float64, or None.
        counts: (N, C) int32, selected pixels of each class in each image, for ``mine_crops`` (``image_counts``)
            and, as ``ClassIndex(stored.counts, stored.pixels)``, for the samplers.
        predicted: (N, C) int32, pixels predicted as each class, selected or not; None where that was not known.
        pixels: (N,) int32, all pixels of each image.
        sizes: (N, 2) int32, height and width of each image.
        fields: what can be read: ``"labels"`` and those of ``"confidence"``, ``"soft"``, ``"pixel_weight"`` and
            ``"predicted"`` that were kept.
        manifest: the manifest as it is on disk: versions, shares, bytes of each field and of an image.

    Raises:
        OSError: the manifest or the list of images is missing or damaged; the message names it.

    Example:
        >>> import tempfile, torch
        >>> from selftrain_seg import PseudoLabels
        >>> from selftrain_seg.store import PseudoLabelStore
        >>> labels = torch.tensor([[[0, 255], [1, 1]]])
        >>> with tempfile.TemporaryDirectory() as root:
        ...     with PseudoLabelStore(root, 2).write(0, ["a"]) as writer:
        ...         writer.add(["a"], PseudoLabels(labels, torch.ones(1, 2, 2)))
        ...         stored = writer.finish()
        ...     stored.read("a").labels
        tensor([[  0, 255],
                [  1,   1]])
        >>> stored.counts, stored.selected_share
        (tensor([[1, 2]], dtype=torch.int32), 0.75)
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.manifest = read_json(folder / MANIFEST)
        data = (folder / IMAGES).read_bytes()
        if digest(data) != self.manifest["files"][IMAGES][1]:
            raise OSError(f"{folder / IMAGES}: damaged file, its checksum is not the manifest's")
        records = [record for line in data.split(b"\n") if line and (record := Record.parse(line)) is not None]
        self.settings: RoundSettings = from_content(self.manifest, tuple(record.name for record in records))
        self.names = self.settings.names
        self.thresholds = self.settings.thresholds
        self.fields = ("labels", *(kind for kind in KINDS if kind in self.manifest["bytes"]))
        self.counts = torch.tensor([record.counts for record in records], dtype=torch.int32)
        self.predicted: Tensor | None = None
        if self.manifest["predicted"] is not None:
            self.predicted = torch.tensor([record.predicted for record in records], dtype=torch.int32)
        self.sizes = torch.tensor([record.size for record in records], dtype=torch.int32)
        self.pixels = self.sizes.prod(1, dtype=torch.int32)
        self._places = {name: place for place, name in enumerate(self.names)}
        # Arrays, not a million small objects: forked workers would copy the memory of those as they count references.
        self._digests = {
            kind: np.frombuffer(b"".join(bytes.fromhex(record.files[kind][1]) for record in records), np.uint8)
            for kind in self.fields
        }

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return (
            f"StoredRound({self.round}, {len(self)} images, {100 * self.selected_share:.1f} % selected,"
            f" {self.bytes_per_image / 1024:.1f} KiB an image)"
        )

    @property
    def round(self) -> int:
        """Number of the round."""
        return self.settings.round

    @property
    def class_counts(self) -> Tensor:
        """(C,) int64: selected pixels of each class over all images, for ``rare_classes``."""
        return self.counts.sum(0)

    @property
    def selected_share(self) -> float:
        """Selected pixels divided by all pixels of the round."""
        return float(self.manifest["selected_share"])

    @property
    def bytes_per_image(self) -> float:
        """Bytes on disk of all maps of the round, divided by its images."""
        return float(self.manifest["bytes_per_image"])

    @property
    def soft_dropped(self) -> tuple[float, float] | None:
        """Mean and largest mass of the soft labels beyond the ``top_k`` kept; None where there are none."""
        found = self.manifest["soft_dropped"]
        return None if found is None else (float(found["mean"]), float(found["max"]))

    def read(self, key: str | SupportsIndex) -> PseudoLabels:
        """Read everything that was kept of one image.

        Args:
            key: its name or its place.

        Returns:
            ``PseudoLabels`` without the dimension of the batch: ``labels`` (H, W) int64; ``confidence`` and
            ``pixel_weight`` (H, W) float32, off by at most 1/510, a confidence above 1 as 1; ``soft`` (C, H, W)
            float32, as :func:`expand_soft` makes it; ``predicted`` (H, W) int64. What was not kept is None, and for
            ``confidence`` NaN everywhere.

        Raises:
            KeyError: there is no image of that name.
            IndexError: the place is past either end.
            OSError: a file is missing or damaged; the message names it.
        """
        place = self._place(key)
        found = {field: self._map(place, field) for field in self.fields}
        labels = found.pop("labels")
        confidence = found.pop("confidence", None)
        if confidence is None:
            confidence = torch.full(labels.shape, torch.nan)
        if "soft" in found:
            found["soft"] = expand_soft(found["soft"][None], self.settings.num_classes)[0]
        return PseudoLabels(labels, confidence, **found)

    def labels(self, key: str | SupportsIndex) -> Tensor:
        """Read the labels of one image and nothing else: what a data set that takes labels by name asks for.

        Args:
            key: its name or its place.

        Returns:
            (H, W) int64. Errors as those of :meth:`read`.
        """
        return self._map(self._place(key), "labels")

    def dataset(self, fields: Sequence[str] = ("labels",)) -> PseudoLabelDataset:
        """View the round as a data set, to be paired with one of images.

        ``torch.utils.data.StackDataset(images, stored.dataset())`` pairs them where the order is the same.

        Args:
            fields: what each sample consists of, among ``stored.fields``.

        Returns:
            The view.

        Raises:
            ValueError: ``fields`` is empty or names something that was not kept.
        """
        return PseudoLabelDataset(self, fields)

    def _place(self, key: str | SupportsIndex) -> int:
        if isinstance(key, str):
            if key not in self._places:
                raise KeyError(f"`key`: expected the name of an image of round {self.round}, got {key!r}")
            return self._places[key]
        place = operator.index(key)
        if not -len(self) <= place < len(self):
            raise IndexError(f"`key`: expected a place in [{-len(self)}, {len(self)}), got {place}")
        return place % len(self)

    def _map(self, place: int, field: str) -> Tensor:
        """(H, W), for soft labels (2k, H, W) uint8."""
        path = self._folder / file_of(field, self.names[place])
        data = path.read_bytes()
        if bytes.fromhex(digest(data)) != self._digests[field][32 * place : 32 * place + 32].tobytes():
            raise OSError(f"{path}: damaged file, its checksum is not the manifest's")
        values = torch.from_numpy(decode(data))
        if field == "soft":
            return values.view(-1, *map(int, self.sizes[place]))
        return values.long() if field in ("labels", "predicted") else values.float().div_(255.0)


class PseudoLabelDataset(Dataset[Any]):
    """A complete round as a data set, by place or by name; made by :meth:`StoredRound.dataset`.

    Args:
        stored: the round.
        fields: what each sample consists of, among ``stored.fields``.

    Returns:
        ``dataset[key]`` is the map of the only field, or the tuple of those of several: ``labels`` and
        ``predicted`` (H, W) int64, ``confidence`` and ``pixel_weight`` (H, W) float32, ``soft`` in its compact form
        (2k, H, W) uint8, for :func:`expand_soft` after batching. Errors as those of :meth:`StoredRound.read`.

    Raises:
        ValueError: ``fields`` is empty or names something that was not kept.

    Example:
        >>> import tempfile, torch
        >>> from selftrain_seg import PseudoLabels
        >>> from selftrain_seg.store import PseudoLabelStore
        >>> with tempfile.TemporaryDirectory() as root:
        ...     with PseudoLabelStore(root, 2).write(0, ["a", "b"]) as writer:
        ...         writer.add(["a", "b"], PseudoLabels(torch.tensor([[[0]], [[1]]]), torch.ones(2, 1, 1)))
        ...         dataset = writer.finish().dataset(["labels", "confidence"])
        ...     len(dataset), dataset["b"]
        (2, (tensor([[1]]), tensor([[1.]])))
    """

    def __init__(self, stored: StoredRound, fields: Sequence[str] = ("labels",)) -> None:
        self.fields = (fields,) if isinstance(fields, str) else tuple(fields)
        if not self.fields or not set(self.fields) <= set(stored.fields):
            raise ValueError(
                f"`fields`: expected some of {', '.join(map(repr, stored.fields))}, got {list(self.fields)}"
            )
        self.stored = stored

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, key: str | SupportsIndex) -> Any:
        place = self.stored._place(key)
        maps = tuple(self.stored._map(place, field) for field in self.fields)
        return maps[0] if len(maps) == 1 else maps
