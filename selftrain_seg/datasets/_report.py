"""Results of ``verify``: counts or problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

_LINES = 12
_DARK = 0.07  # 12 bits in 16 reach 0.0625
_NONE: Mapping[Any, int] = MappingProxyType({})


class BrokenFilesError(ValueError):
    """Raised by ``verify`` of a data set; lists every problem with its files.

    Args:
        problems: (index of the sample, message) for each problem.

    Attributes:
        problems: the messages, each of which names its file.
        indices: ascending indices of the broken samples; leave them out with ``torch.utils.data.Subset``.

    Example:
        >>> from selftrain_seg.datasets import BrokenFilesError
        >>> error = BrokenFilesError([(3, "labels/00004.png: empty"), (3, "images/00004.png: empty")])
        >>> print(error)
        2 problems in 1 sample:
        labels/00004.png: empty
        images/00004.png: empty
        >>> error.indices
        (3,)
    """

    problems: tuple[str, ...]
    indices: tuple[int, ...]

    _SHOWN = 20

    def __init__(self, problems: Sequence[tuple[int, str]]) -> None:
        super().__init__(tuple(problems))
        self.problems = tuple(message for _, message in problems)
        self.indices = tuple(sorted({index for index, _ in problems}))

    def __str__(self) -> str:
        count, samples = len(self.problems), len(self.indices)
        head = f"{count} problem{'s' * (count != 1)} in {samples} sample{'s' * (samples != 1)}:"
        more = [f"... and {count - self._SHOWN} more"] if count > self._SHOWN else []
        return "\n".join((head, *self.problems[: self._SHOWN], *more))


class FolderReport(NamedTuple):
    """Returned by ``verify`` of a data set; ``print(report)`` shows a table.

    Attributes:
        samples: number of samples checked.
        sizes: (height, width) -> number of images.
        channels: channels in the file -> number of images.
        bits: bits per channel in the file -> number of images.
        turned: number of images turned by their EXIF orientation.
        values: lowest and highest value of the returned images; None if no image was read.
        classes: class names; empty for a data set without labels.
        pixels: number of pixels of each class.
        images_with: number of images in which each class occurs.
        ignored: number of pixels without a class.
        ids: values that occur in label files, except in those of colours.
        left_out: (path, reason) for each file that the data set does not use.

    Example:
        >>> from selftrain_seg.datasets import FolderReport
        >>> report = FolderReport(classes=("background", "vessel"), pixels=(90, 9), images_with=(2, 1), ignored=1)
        >>> report.labelled
        0.99
        >>> print(report)
        class       pixels  share  images
        background      90  90.0%       2
        vessel           9   9.0%       1
        ignored          1   1.0%
        labelled: 99.0% of the pixels
    """

    samples: int = 0
    sizes: Mapping[tuple[int, int], int] = _NONE
    channels: Mapping[int, int] = _NONE
    bits: Mapping[int, int] = _NONE
    turned: int = 0
    values: tuple[float, float] | None = None
    classes: tuple[str, ...] = ()
    pixels: tuple[int, ...] = ()
    images_with: tuple[int, ...] = ()
    ignored: int = 0
    ids: tuple[int, ...] = ()
    left_out: tuple[tuple[Path, str], ...] = ()

    @property
    def labelled(self) -> float | None:
        """The share of pixels that have a class; None without labels."""
        total = sum(self.pixels) + self.ignored
        return sum(self.pixels) / total if total else None

    def __str__(self) -> str:
        return "\n".join([*self._about_images(), *self._about_classes(), *self._about_others()])

    def _about_images(self) -> list[str]:
        if not self.sizes:
            return []
        low, high = min(self.sizes), max(self.sizes)
        one = f"{low[0]} × {low[1]}"
        sizes = one if len(self.sizes) == 1 else f"{len(self.sizes)}, from {one} to {high[0]} × {high[1]}"
        values = "" if self.values is None else f"{self.values[0]:g} to {self.values[1]:g}"
        if self.values is not None and self.values[1] < _DARK and max(self.bits) > 8:
            values += ", very dark: is `white` lower than 65535?"
        bits = _counted(self.bits)
        if min(self.bits) <= 8 < max(self.bits):
            bits += "; bring them to one range with v2.ToDtype(torch.float32, scale=True)"
        rows = [
            ("images", str(self.samples)),
            ("sizes (height × width)", sizes),
            ("channels", _counted(self.channels)),
            ("bits per channel", bits),
            ("values", values),
            ("turned by EXIF", str(self.turned)),
        ]
        return _table(rows, "<<")

    def _about_classes(self) -> list[str]:
        if not self.classes:
            return []
        total = max(sum(self.pixels) + self.ignored, 1)
        rows = [("class", "pixels", "share", "images")]
        for name, pixels, images in zip(self.classes, self.pixels, self.images_with, strict=True):
            rows.append((name, str(pixels), f"{100 * pixels / total:.1f}%", str(images)))
        rows.append(("ignored", str(self.ignored), f"{100 * self.ignored / total:.1f}%", ""))
        labelled = self.labelled
        share = [] if labelled is None else [f"labelled: {100 * labelled:.1f}% of the pixels"]
        return _table(rows, "<>>>") + share

    def _about_others(self) -> list[str]:
        why = Counter(reason for _, reason in self.left_out)
        return [f"left out: {count} × {reason}" for reason, count in why.most_common(_LINES)]


def _counted(counts: Mapping[int, int]) -> str:
    if len(counts) == 1:
        return str(next(iter(counts)))
    return ", ".join(f"{value} ({count} images)" for value, count in sorted(counts.items()))


def _table(rows: Sequence[tuple[str, ...]], sides: str) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = (zip(row, sides, widths, strict=True) for row in rows)
    return ["  ".join(f"{text:{side}{width}}" for text, side, width in row).rstrip() for row in cells]
