"""Class counts of every image of a data set, counted once and cached on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg._files import whole_file
from selftrain_seg._progress import with_progress
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["ClassIndex"]

_FORMAT = 1


class ClassIndex:
    """Pixel counts of every class in every image of a data set.

    ``counts[i, c]`` is the number of pixels of class c in image i. The samplers draw from it, ``mine_crops`` takes
    its rows as ``image_counts``, and ``rare_classes`` takes its sum. It needs 4·(C + 1) bytes per image: 8 MB for
    100,000 images and 19 classes.

    Args:
        counts: (N, C), integer, at least 0; kept as int32 on the CPU.
        pixels: (N,), integer, at least 1: the number of pixels of each image, with or without a label.

    Attributes:
        counts: (N, C) int32.
        pixels: (N,) int32.

    Raises:
        TypeError: ``counts`` or ``pixels`` is not an integer tensor.
        ValueError: ``counts`` is not (N, C) with C of at least 1 or has negative values; ``pixels`` is not (N,),
            or smaller than the image's counts, or not in [1, 2**31).

    Example:
        >>> import torch
        >>> from selftrain_seg.mining import ClassIndex
        >>> masks = [torch.tensor([[0, 0], [1, 255]]), torch.tensor([[2, 2], [2, 2]])]
        >>> index = ClassIndex.from_masks(masks, 3)
        >>> index.counts
        tensor([[2, 1, 0],
                [0, 0, 4]], dtype=torch.int32)
        >>> index.contains(0.5)
        tensor([[ True, False, False],
                [False, False,  True]])
    """

    def __init__(self, counts: Tensor, pixels: Tensor) -> None:
        _checks.check_integer(counts, "counts")
        if counts.ndim != 2 or counts.shape[1] == 0:
            raise ValueError(f"`counts`: expected (N, C) with at least one class, got {tuple(counts.shape)}")
        _checks.check_integer(pixels, "pixels")
        if tuple(pixels.shape) != (counts.shape[0],):
            raise ValueError(f"`pixels`: expected (N,) = ({counts.shape[0]},), got {tuple(pixels.shape)}")
        if bool((counts < 0).any()):
            raise ValueError("`counts`: expected values of at least 0, got negative ones")
        pixels = pixels.long()  # as int32, 2**31 is negative
        wrong = (pixels < 1) | (pixels >= 2**31) | (counts.sum(1) > pixels)
        if bool(wrong.any()):
            image = int(wrong.nonzero()[0, 0])
            raise ValueError(
                f"`pixels`: expected values in [1, 2**31), at least the sum of the image's counts,"
                f" got {int(pixels[image])} for image {image}"
            )
        self.counts = counts.detach().to("cpu", torch.int32)
        self.pixels = pixels.detach().to("cpu", torch.int32)

    @classmethod
    def from_masks(
        cls,
        masks: Iterable[Any],
        num_classes: int,
        *,
        ignore_index: int = IGNORE_INDEX,
        cache: str | os.PathLike[str] | None = None,
        files: Iterable[str | os.PathLike[str]] | None = None,
        progress: bool = False,
    ) -> ClassIndex:
        """Count the classes of an iterable of label maps, in its order.

        Args:
            masks: label maps as integer tensors, arrays or images, (H, W) each, of any sizes; or batches (B, H, W),
                for instance from a DataLoader that reads them in parallel. Iterated once.
            num_classes: C. Labels outside [0, C) are not counted.
            ignore_index: label that is not counted; outside [0, C).
            cache: file for the counts. If it was made from the same masks, the counts are read from it; otherwise
                they are counted and the file is written atomically. Masks in a list, tuple, tensor or array are
                compared by content; those of a data set of this package by its label map and by names, sizes and
                modification times of its files. Any other iterable needs ``files``.
            files: the files that ``masks`` are read from; ``cache`` detects changes by their names, sizes and
                modification times.
            progress: show a progress bar if tqdm is installed.

        Returns:
            The index, one row per label map.

        Raises:
            TypeError: ``num_classes`` or ``ignore_index`` is not an int; a mask does not hold integers.
            ValueError: ``num_classes`` is below 1; ``ignore_index`` is in [0, C); a mask is not (H, W) or (B, H, W),
                has no pixels, or looks like a colour image, (H, W, 3) or (H, W, 4); ``cache`` is not the file of an
                index, or has other classes; ``cache`` is given for masks that need ``files``.
            OSError: one of ``files`` cannot be found.
        """
        _checks.check_count(num_classes, "num_classes")
        _checks.check_ignore_index(ignore_index, num_classes)
        settings: dict[str, Any] = {"num_classes": int(num_classes), "ignore_index": int(ignore_index)}
        made_of = None
        if cache is not None:
            made_of = _made_of(masks, files)
            found = _cached(Path(cache), settings, made_of)
            if found is not None:
                return found
        rows = _Rows(num_classes + 1)
        for mask in with_progress(masks, None, progress, "mask", "class index"):
            rows.add(_count(mask, num_classes))
        table = rows.table()
        index = cls(table[:, :-1], table[:, -1])
        if cache is not None:
            _write(Path(cache), index, {**settings, "made_of": made_of})
        return index

    @property
    def num_classes(self) -> int:
        """C."""
        return self.counts.shape[1]

    @property
    def class_counts(self) -> Tensor:
        """(C,) int64: pixels of each class over all images, for :func:`rare_classes` and :func:`classes_below`."""
        return self.counts.sum(0)

    def __len__(self) -> int:
        return self.counts.shape[0]

    def __repr__(self) -> str:
        return f"ClassIndex({len(self)} images, {self.num_classes} classes)"

    def contains(self, min_share: float = 0.0) -> Tensor:
        """Return which images show which classes.

        Args:
            min_share: in [0, 1], share of the image's pixels that a class must cover; 0 requires one pixel.

        Returns:
            (N, C) bool.

        Raises:
            TypeError: ``min_share`` is not a number.
            ValueError: ``min_share`` is outside [0, 1].
        """
        _checks.check_real(min_share, "min_share", 0.0, 1.0)
        # Tolerates the rounding of decimal shares: 7 of 100 pixels are 0.07, but 100 * 0.07 is 7.000000000000001.
        needed = (self.pixels.double() * (float(min_share) * (1.0 - 2.0**-50))).clamp(min=1.0)
        return self.counts >= needed[:, None]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to a file, atomically.

        Args:
            path: the file; an existing one is replaced.
        """
        _write(Path(path), self, {"num_classes": self.num_classes})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ClassIndex:
        """Read a file written by :meth:`save` or ``cache``. It is read without unpickling arbitrary objects.

        Args:
            path: the file.

        Returns:
            The index.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: ``path`` is not the file of an index.
        """
        return _read(Path(path))[0]


class _Rows:
    """A table of int64 rows that grows by doubling."""

    def __init__(self, columns: int) -> None:
        self.rows = np.empty((256, columns), np.int64)
        self.used = 0

    def add(self, rows: np.ndarray[Any, Any]) -> None:
        end = self.used + len(rows)
        if end > len(self.rows):
            larger = np.empty((max(end, 2 * len(self.rows)), self.rows.shape[1]), np.int64)
            larger[: self.used] = self.rows[: self.used]
            self.rows = larger
        self.rows[self.used : end] = rows
        self.used = end

    def table(self) -> Tensor:
        return torch.from_numpy(self.rows[: self.used])


def _count(mask: Any, num_classes: int) -> np.ndarray[Any, Any]:
    """(B, C + 1): the number of pixels of each class, then of the whole image."""
    if isinstance(mask, (str, os.PathLike)):
        raise TypeError(f"`masks`: expected label maps, got the path {os.fspath(mask)!r}; open it, or pass a data set")
    labels = mask if isinstance(mask, Tensor) else torch.from_numpy(np.array(mask))
    _checks.check_integer(labels, "masks")
    if labels.ndim == 3 and (labels.shape[2] in (3, 4) or len(getattr(mask, "getbands", tuple)()) > 1):
        raise ValueError(
            f"`masks`: expected (H, W) or (B, H, W), got {tuple(labels.shape)}, which looks like a colour image"
            " (H, W, channels); convert colours to classes first (LabelMap), or pass narrow label maps one by one"
        )
    if labels.ndim not in (2, 3) or 0 in labels.shape[-2:]:
        raise ValueError(f"`masks`: expected (H, W) or (B, H, W) with pixels, got {tuple(labels.shape)}")
    labels = labels.detach().to("cpu").reshape(-1, labels.shape[-2] * labels.shape[-1])
    out = np.zeros((len(labels), num_classes + 1), np.int64)
    out[:, -1] = labels.shape[1]
    for row, image in zip(out, labels, strict=True):
        if image.dtype != torch.uint8:
            wide = image.long()
            image = torch.where((wide < 0) | (wide >= num_classes), num_classes, wide)
        found = np.asarray(torch.bincount(image, minlength=num_classes))[:num_classes]
        row[:num_classes] = found
    return out


def _made_of(masks: Any, files: Iterable[str | os.PathLike[str]] | None) -> str:
    """Digest of the sources of the label maps; it changes when one of them changes."""
    made = hashlib.sha256()
    source = getattr(masks, "dataset", masks)  # a DataLoader has a data set
    if files is None and hasattr(source, "made_of"):
        words, files = source.made_of()
        made.update(words.encode())
    if files is not None:
        paths = [Path(file).absolute() for file in files]
        root = os.path.commonpath([path.parent for path in paths]) if paths else ""
        for path in paths:
            state = path.stat()
            made.update(
                f"{path.relative_to(root).as_posix()}|{state.st_size}|{state.st_mtime_ns}\n".encode(
                    "utf-8", "surrogateescape"
                )
            )
    elif isinstance(source, (list, tuple, Tensor, np.ndarray)):
        for mask in source:
            values = np.asarray(mask.detach().to("cpu") if isinstance(mask, Tensor) else mask)
            made.update(f"{values.shape}|{values.dtype.str}\n".encode() + values.tobytes())
    else:
        raise ValueError(
            f"`files`: expected the files that the masks are read from, as `cache` cannot detect changed masks in"
            f" this {type(source).__name__} without them"
        )
    return made.hexdigest()


def _write(path: Path, index: ClassIndex, settings: dict[str, Any]) -> None:
    with whole_file(path) as file:
        torch.save({"format": _FORMAT, "counts": index.counts, "pixels": index.pixels, **settings}, file)


def _read(path: Path) -> tuple[ClassIndex, dict[str, Any]]:
    with path.open("rb") as file:
        try:
            content = torch.load(file, weights_only=True, map_location="cpu")
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}")
            return ClassIndex(content["counts"], content["pixels"]), content
        except Exception as error:
            raise ValueError(f"`path`: expected the file of a ClassIndex, got {path} ({error})") from error


def _cached(path: Path, settings: dict[str, Any], made_of: str) -> ClassIndex | None:
    """The cached index; None if the file does not exist yet or the masks have changed."""
    try:
        index, content = _read(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"`cache`: {error}") from error
    for name, value in settings.items():
        if content.get(name, value) != value:
            raise ValueError(f"`cache`: expected an index with {name} {value}, got {content[name]} in {path}")
    return index if content.get("made_of") == made_of else None
