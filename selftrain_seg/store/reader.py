"""Read complete rounds and check every file against its checksum."""

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
    """A complete round of pseudo-labels, as opened by :meth:`PseudoLabelStore.round`.

    Its tables are in memory, about 250 bytes per image and file. The maps are read on access and compared with the
    checksums of the round. The object can be pickled for DataLoader workers.

    Args:
        folder: folder of the round.

    Attributes:
        settings: the settings of the round, a ``RoundSettings``.
        names: names of all images, in order.
        thresholds: (C,) float64, or None.
        counts: (N, C) int32, number of selected pixels of each class in each image, for ``mine_crops``
            (``image_counts``) and, as ``ClassIndex(stored.counts, stored.pixels)``, for the samplers.
        predicted: (N, C) int32, number of pixels predicted as each class, selected or not; None if unknown.
        pixels: (N,) int32, number of pixels of each image.
        sizes: (N, 2) int32, height and width of each image.
        fields: the stored fields: ``"labels"``, and any of ``"confidence"``, ``"soft"``, ``"pixel_weight"`` and
            ``"predicted"``.
        manifest: content of the manifest: versions, shares, bytes per field and per image.

    Raises:
        OSError: the manifest or the list of images is missing or damaged; the message names the file.

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
        # Use arrays: forked workers copy the memory of many small objects, as reference counts change.
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
        """(C,) int64: number of selected pixels of each class over all images, for ``rare_classes``."""
        return self.counts.sum(0)

    @property
    def selected_share(self) -> float:
        """Number of selected pixels divided by the number of all pixels of the round."""
        return float(self.manifest["selected_share"])

    @property
    def bytes_per_image(self) -> float:
        """Mean number of bytes on disk per image."""
        return float(self.manifest["bytes_per_image"])

    @property
    def soft_dropped(self) -> tuple[float, float] | None:
        """Mean and maximum of the soft-label mass beyond the ``top_k`` stored entries; None without soft labels."""
        found = self.manifest["soft_dropped"]
        return None if found is None else (float(found["mean"]), float(found["max"]))

    def read(self, key: str | SupportsIndex) -> PseudoLabels:
        """Read all fields of one image.

        Args:
            key: its name or its index.

        Returns:
            ``PseudoLabels`` without the batch dimension: ``labels`` (H, W) int64; ``confidence`` and
            ``pixel_weight`` (H, W) float32, off by at most 1/510 (a confidence above 1 is stored as 1); ``soft``
            (C, H, W) float32, from :func:`expand_soft`; ``predicted`` (H, W) int64. Fields that were not stored are
            None, and ``confidence`` is NaN.

        Raises:
            KeyError: there is no image of that name.
            IndexError: the index is out of range.
            OSError: a file is missing or damaged; the message names the file.
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
        """Read only the labels of one image, for instance as the ``labels`` function of a data set.

        Args:
            key: its name or its index.

        Returns:
            (H, W) int64. Raises the errors of :meth:`read`.
        """
        return self._map(self._place(key), "labels")

    def dataset(self, fields: Sequence[str] = ("labels",)) -> PseudoLabelDataset:
        """Return the round as a data set.

        ``torch.utils.data.StackDataset(images, stored.dataset())`` pairs it with a data set of images in the same
        order.

        Args:
            fields: fields of each sample, from ``stored.fields``.

        Returns:
            The data set.

        Raises:
            ValueError: ``fields`` is empty or names a field that was not stored.
        """
        return PseudoLabelDataset(self, fields)

    def _place(self, key: str | SupportsIndex) -> int:
        if isinstance(key, str):
            if key not in self._places:
                raise KeyError(f"`key`: expected the name of an image of round {self.round}, got {key!r}")
            return self._places[key]
        place = operator.index(key)
        if not -len(self) <= place < len(self):
            raise IndexError(f"`key`: expected an index in [{-len(self)}, {len(self)}), got {place}")
        return place % len(self)

    def _map(self, place: int, field: str) -> Tensor:
        """Read a map: (H, W), for soft labels (2k, H, W) uint8."""
        path = self._folder / file_of(field, self.names[place])
        data = path.read_bytes()
        if bytes.fromhex(digest(data)) != self._digests[field][32 * place : 32 * place + 32].tobytes():
            raise OSError(f"{path}: damaged file, its checksum is not the manifest's")
        values = torch.from_numpy(decode(data))
        if field == "soft":
            return values.view(-1, *map(int, self.sizes[place]))
        return values.long() if field in ("labels", "predicted") else values.float().div_(255.0)


class PseudoLabelDataset(Dataset[Any]):
    """A complete round as a data set, indexed by number or name; made by :meth:`StoredRound.dataset`.

    Args:
        stored: the round.
        fields: fields of each sample, from ``stored.fields``.

    Returns:
        ``dataset[key]`` is the map of a single field, or a tuple of the maps of several fields: ``labels`` and
        ``predicted`` (H, W) int64, ``confidence`` and ``pixel_weight`` (H, W) float32, ``soft`` in its compact form
        (2k, H, W) uint8, for :func:`expand_soft` after batching. It raises the errors of :meth:`StoredRound.read`.

    Raises:
        ValueError: ``fields`` is empty or names a field that was not stored.

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
