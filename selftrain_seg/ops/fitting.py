"""Where the pixels of a box come from when it is enlarged and put at another place."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selftrain_seg.ops._library import operator


class Axis(NamedTuple):
    """Where the pixels of one axis of the result come from; of n pixels."""

    nearest: Tensor  # (B, n) int64, the pixel that covers it
    before: Tensor  # (B, n) int64, the pixel whose centre is next before its own
    after: Tensor  # (B, n) int64, the one behind that
    inside: Tensor  # (B, n) bool, whether the pixel lies in the enlarged box
    share: Tensor  # (B, n) float64, how far from the centre of ``before`` to that of ``after``


def fit(region: Tensor, factor: Tensor, chance: Tensor) -> tuple[Axis, Axis]:
    """Enlarge the box of a region as far as the image allows, and put it at a random place in it.

    Args:
        region: (B, H, W) bool; without pixels, any box.
        factor: (B,) float64, above 0: of both sides, which are rounded.
        chance: (B, 2) float64 in [0, 1): choose the row and the column.

    Returns:
        The rows and the columns.
    """
    height = region.shape[1]
    tables = _fit(region.any(2), region.any(1), factor, chance)
    parts = (*tables[0].unbind(1), *tables[1:])
    return Axis(*(part[:, :height] for part in parts)), Axis(*(part[:, height:] for part in parts))


def _anywhere(rows: Tensor, columns: Tensor, factor: Tensor, chance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    starts, lengths = [], []
    for shown in (rows, columns):
        pixels = torch.arange(shown.shape[1], device=shown.device)
        first = torch.where(shown, pixels, shown.shape[1] - 1).amin(1)
        last = torch.where(shown, pixels, 0).amax(1)
        starts.append(first)
        lengths.append((last - first + 1).clamp(min=1))
    sides = rows.shape[1], columns.shape[1]
    for side, length in zip(sides, lengths, strict=True):
        factor = torch.minimum(factor, length.double().reciprocal() * side)
    axes = []
    for axis, side in enumerate(sides):
        size = (lengths[axis] * factor).round().long().clamp(1, side)
        place = (chance[:, axis] * (side - size + 1)).floor().long()
        axes.append(_axis(starts[axis], lengths[axis], size, place, side))
    where, inside, share = (torch.cat(parts, dim=-1) for parts in zip(*axes, strict=True))
    return where, inside, share


def _axis(start: Tensor, length: Tensor, size: Tensor, place: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 3, n): nearest, before and after; (B, n) inside, share."""
    step = torch.arange(side, device=start.device) - place[:, None]
    start, length, size = start[:, None], length[:, None], size[:, None]
    inside = (step >= 0) & (step < size)
    step = torch.where(inside, step, 0)
    centre = (2 * step + 1) * length
    twice = centre - size  # 2·size·(distance from the first centre), so that no half is lost
    before = start + twice.div(2 * size, rounding_mode="floor")
    where = torch.stack([start + centre // (2 * size), before, before + 1], dim=1).clamp(0, side - 1)
    return where, inside, twice.remainder(2 * size).double() / (2 * size)


def _fake(rows: Tensor, columns: Tensor, factor: Tensor, chance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, total = rows.shape[0], rows.shape[1] + columns.shape[1]
    return (
        rows.new_empty((batch, 3, total), dtype=torch.int64),
        rows.new_empty((batch, total)),
        rows.new_empty((batch, total), dtype=torch.float64),
    )


_fit = operator(
    "fit(Tensor rows, Tensor columns, Tensor factor, Tensor chance) -> (Tensor, Tensor, Tensor)",
    _anywhere,
    _fake,
    kernel="launch_maps",
)
