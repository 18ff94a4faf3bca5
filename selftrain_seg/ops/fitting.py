"""Place enlarged regions: source positions of their pixels, and the region on top at each pixel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selftrain_seg.ops._library import operator


class Places(NamedTuple):
    """Source positions of the pixels of an image for each of K enlarged regions; rows first, then columns."""

    where: Tensor  # (B, K, 3, H + W) int64: the nearest source pixel, the one before and the one after
    inside: Tensor  # (B, K, H + W) bool, whether it lies in the enlarged box
    share: Tensor  # (B, K, H + W) float64, weight of the pixel after


def fit(numbers: Tensor, factor: Tensor, chance: Tensor) -> Places:
    """Enlarge the boxes of regions and place each at a random position in the image; leave out those that do not fit.

    Args:
        numbers: (B, H, W) uint8: number of the region, from 1 to K; 0 for none.
        factor: (B, K) float64, above 0: scale of both sides, which are rounded.
        chance: (B, K, 2) float64 in [0, 1): random numbers for row and column.

    Returns:
        The places; arbitrary for numbers without pixels.
    """
    (batch, height, width), regions = numbers.shape, factor.shape[1]
    shown = []
    for side, pixels in ((height, (-1, 1)), (width, (1, -1))):
        place = torch.arange(side, device=numbers.device).view(pixels)
        any_of = torch.zeros(batch, (regions + 1) * side, dtype=torch.bool, device=numbers.device)
        any_of.scatter_(1, (numbers.long() * side + place).flatten(1), True)
        shown.append(any_of.view(batch, regions + 1, side)[:, 1:].flatten(0, 1))
    tables = _fit(*shown, factor.flatten(), chance.flatten(0, 1))
    return Places(*(table.unflatten(0, (batch, regions)) for table in tables))


def topmost(numbers: Tensor, places: Places) -> Tensor:
    """Find the region on top at each pixel.

    Args:
        numbers: as in ``fit``.
        places: from ``fit``.

    Returns:
        (B, H, W) uint8: the largest number of the regions that cover a pixel; 0 for none.
    """
    top: Tensor = _topmost(numbers, places.where, places.inside)
    return top


def _anywhere(rows: Tensor, columns: Tensor, factor: Tensor, chance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    axes, sizes, fits = [], [], torch.ones_like(rows[:, 0])
    for shown in (rows, columns):
        side, pixels = shown.shape[1], torch.arange(shown.shape[1], device=shown.device)
        first = torch.where(shown, pixels, side - 1).amin(1)
        last = torch.where(shown, pixels, 0).amax(1)
        length = (last - first + 1).clamp(min=1)
        size = (length * factor).round().long().clamp(min=1)
        fits = fits & (size <= side)
        sizes.append((first, length, size.clamp(max=side), side))
    for axis, (first, length, size, side) in enumerate(sizes):
        place = (chance[:, axis] * (side - size + 1)).floor().long()
        axes.append(_axis(first, length, size, place, side))
    where, inside, share = (torch.cat(parts, dim=-1) for parts in zip(*axes, strict=True))
    return where, inside & fits[:, None], share


def _axis(start: Tensor, length: Tensor, size: Tensor, place: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (N, 3, n) nearest, before and after; (N, n) inside; (N, n) share."""
    step = torch.arange(side, device=start.device) - place[:, None]
    start, length, size = start[:, None], length[:, None], size[:, None]
    inside = (step >= 0) & (step < size)
    step = torch.where(inside, step, 0)
    centre = (2 * step + 1) * length
    twice = centre - size  # 2·size·(distance from the first centre), an integer
    before = start + twice.div(2 * size, rounding_mode="floor")
    where = torch.stack([start + centre // (2 * size), before, before + 1], dim=1).clamp(0, side - 1)
    return where, inside, twice.remainder(2 * size).double() / (2 * size)


def _fake(rows: Tensor, columns: Tensor, factor: Tensor, chance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    number, total = rows.shape[0], rows.shape[1] + columns.shape[1]
    return (
        rows.new_empty((number, 3, total), dtype=torch.int64),
        rows.new_empty((number, total)),
        rows.new_empty((number, total), dtype=torch.float64),
    )


def _topmost_anywhere(numbers: Tensor, where: Tensor, inside: Tensor) -> Tensor:
    height = numbers.shape[1]
    top = torch.zeros_like(numbers)
    for number in range(1, where.shape[1] + 1):
        places, within = where[:, number - 1, 0], inside[:, number - 1]
        rows, columns = places[:, :height], places[:, height:]
        in_rows, in_columns = within[:, :height], within[:, height:]
        shown = numbers.gather(1, rows[:, :, None].expand(numbers.shape))
        shown = shown.gather(2, columns[:, None, :].expand(numbers.shape))
        top.masked_fill_((shown == number) & in_rows[:, :, None] & in_columns[:, None, :], number)
    return top


def _topmost_on_cpu(numbers: Tensor, where: Tensor, inside: Tensor) -> Tensor:
    """Loop over the boxes."""
    height = numbers.shape[1]
    top = torch.zeros_like(numbers, memory_format=torch.contiguous_format)
    for image, out, places, within in zip(numbers, top, where[:, :, 0], inside, strict=True):
        for number in range(1, int(image.max()) + 1):
            place, covered = places[number - 1], within[number - 1]
            (first_row, rows), (first_column, columns) = _run(covered[:height]), _run(covered[height:])
            box = slice(first_row, first_row + rows), slice(first_column, first_column + columns)
            shown = image.index_select(0, place[:height][box[0]]).index_select(1, place[height:][box[1]])
            out[box].masked_fill_(shown == number, number)
    return top


def _run(covered: Tensor) -> tuple[int, int]:
    """Start and length of the run of True."""
    return int(covered.int().argmax()), int(covered.sum())


def _topmost_fake(numbers: Tensor, where: Tensor, inside: Tensor) -> Tensor:
    return torch.empty_like(numbers, memory_format=torch.contiguous_format)


_fit = operator(
    "fit(Tensor rows, Tensor columns, Tensor factor, Tensor chance) -> (Tensor, Tensor, Tensor)",
    _anywhere,
    _fake,
    kernel="launch_maps",
)
_topmost = operator(
    "topmost(Tensor numbers, Tensor where, Tensor inside) -> Tensor",
    _topmost_anywhere,
    _topmost_fake,
    cpu=_topmost_on_cpu,
    kernel="launch_maps",
)
