"""Search and count (B, H, W) label maps: find a pixel of a class, place a crop around it, and sum by class.

On a GPU nothing synchronises with the host. On a CPU memory is the bottleneck, so maps are converted to bytes and
processed in parts that fit into the cache. The results are the same, bit for bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from selftrain_seg.ops._library import operator

# Labels are looked up in a table with one entry per value; larger and negative values are ignored.
_MAX_VALUES = 65536
# Pixels (int64) whose temporaries stay in a CPU core's cache.
_CACHED_PIXELS = 131072
# Up to this number of classes, comparing bytes is as fast as a table.
_FEW_CLASSES = 16
# Neighbouring pixels mostly fall into the same bin, and on a CPU each count then waits for the previous one. Counting
# neighbours in separate tables, as many as fit in 64 bits, and adding these up is twice as fast.
_TABLES = ((torch.int16, 4), (torch.int32, 2), (torch.int64, 1))
_MANY_PIXELS = 1 << 14  # below this, adding up costs more than it saves
# Weights are summed as integers, so that sums do not depend on the order.
_UNITS = 2.0**24


class Pixels(NamedTuple):
    """One pixel of each image; row and column are arbitrary if none was found."""

    row: Tensor  # (B,) int64
    column: Tensor  # (B,) int64
    found: Tensor  # (B,) bool


def find_pixels(labels: Tensor, ranked: Tensor, number: Tensor) -> Pixels:
    """Find a pixel of the last class in ``ranked`` that occurs: of its n pixels, the one at index ``number`` modulo n.

    Args:
        labels: (B, H, W), integer, H and W at least 1.
        ranked: (B, K) int64, distinct classes per image; values outside [0, 65536) are ignored. With K = 1 the labels
            are read once.
        number: (B,) int64, not negative. Pixels are numbered in reading order.
    """
    return Pixels(*_find_pixels(labels, ranked, number))


def mine(
    labels: Tensor, ranked: Tensor, draws: Tensor, image_counts: Tensor | None, size: tuple[int, int], limit: int
) -> Tensor:
    """Place a crop in each image: around a pixel of the last class in ``ranked`` that occurs, or anywhere.

    Args:
        labels: as in ``find_pixels``.
        ranked: as in ``find_pixels``.
        draws: (B, 4) int64, not negative: the first one is compared with ``limit``; the second is the number of the
            pixel; the others are row and column of a crop without one.
        image_counts: (B, C), integer: number of pixels of each class, if known.
        size: (h, w) of the crop.
        limit: the crop is around a pixel if the first draw is below it.

    Returns:
        (B, 2) int64, row and column of the corner. The pixel is at the centre unless the crop had to be shifted inside.
    """
    corners: Tensor = _mine(labels, ranked, draws, image_counts, *size, limit)
    return corners


def label_sums(
    labels: Tensor, num_classes: int, *, before: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """Count the pixels of each label in each image, or sum their weights.

    The column of a label is its class + 1; 0 and C + 1 stand for labels below and above all classes. With other labels
    ``before`` of the same pixels, it is that of the pair, ``before · (C + 2) + labels``.

    Args:
        labels: (B, H, W), integer.
        num_classes: C.
        before: (B, H, W), integer.
        weights: (B, H, W) in [0, 1], rounded to multiples of 2^-24, so that sums are exact; NaN counts as 0.

    Returns:
        (B, C + 2) or (B, (C + 2)²); int64, with weights float64.
    """
    sums: Tensor = _label_sums(labels, before, None if weights is None else weights.detach(), num_classes)
    return sums


def _find_anywhere(labels: Tensor, ranked: Tensor, number: Tensor) -> Pixels:
    return _find(labels, ranked, number, labels.shape[1])


def _find_on_cpu(labels: Tensor, ranked: Tensor, number: Tensor) -> Pixels:
    rows = max(1, _CACHED_PIXELS // max(1, labels.shape[0] * labels.shape[2]))
    if ranked.shape[1] != 1:  # otherwise the labels are read only once
        labels = _narrow(labels)
        if labels.dtype == torch.uint8 and ranked.shape[1] < _FEW_CLASSES:
            ranked = _compare(labels, ranked, rows)
    return _find(labels, ranked, number, rows)


def _find_fake(labels: Tensor, ranked: Tensor, number: Tensor) -> Pixels:
    row = ranked.new_empty(labels.shape[0])
    return Pixels(row, torch.empty_like(row), torch.empty_like(row, dtype=torch.bool))


def _mine_anywhere(
    labels: Tensor, ranked: Tensor, draws: Tensor, image_counts: Tensor | None, height: int, width: int, limit: int
) -> Tensor:
    if image_counts is not None:
        ranked = _last_counted(image_counts, ranked)
    coin, number, place_y, place_x = draws.unbind(1)
    row, column, found = find_pixels(labels, ranked, number)
    mined = found & (coin < limit)
    last_top, last_left = max(0, labels.shape[1] - height), max(0, labels.shape[2] - width)
    top = torch.where(mined, (row - height // 2).clamp(0, last_top), place_y % (last_top + 1))
    left = torch.where(mined, (column - width // 2).clamp(0, last_left), place_x % (last_left + 1))
    return torch.stack([top, left], dim=1)


def _mine_fake(labels: Tensor, ranked: Tensor, *_: Any) -> Tensor:
    return ranked.new_empty((len(labels), 2))


def _last_counted(image_counts: Tensor, ranked: Tensor) -> Tensor:
    """(B, 1): the last class with a positive stored count, -1 for none."""
    last = image_counts.shape[1] - 1
    ranked = torch.constant_pad_nd(ranked, (1, 0), -1)
    present = (ranked >= 0) & (ranked <= last) & (image_counts.gather(1, ranked.clamp(0, last)) > 0)
    return ranked.gather(1, (present * torch.arange(ranked.shape[1], device=ranked.device)).amax(1, keepdim=True))


def _find(labels: Tensor, ranked: Tensor, number: Tensor, rows: int) -> Pixels:
    """Find the pixels, ``rows`` rows at a time."""
    values = min(_MAX_VALUES, torch.iinfo(labels.dtype).max + 1)
    if ranked.shape[1] == 1:
        shown = ranked[:, 0]
        some = (shown >= 0) & (shown < values)
    else:
        shown, labels = _look_up(labels, ranked, values, rows)  # smaller maps, read from here on
        some = shown > 0
    shown = shown.to(labels.dtype)[:, None, None]
    counts = [_row_sums(_equal(labels[:, part], shown)) for part in _row_blocks(labels, 8 * rows)]
    in_row = torch.cat(counts, dim=1).long()
    up_to_row = in_row.cumsum(1)
    count = up_to_row[:, -1]
    rank = number % count.clamp(min=1)
    row = (up_to_row <= rank[:, None]).sum(1).clamp(max=labels.shape[1] - 1)
    rank_in_row = rank - (up_to_row - in_row).gather(1, row[:, None])[:, 0]
    line = labels[torch.arange(labels.shape[0], device=labels.device), row] == shown[:, 0]
    column = (line.cumsum(1) <= rank_in_row[:, None]).sum(1)
    return Pixels(row, column, some & (count > 0))


def _look_up(labels: Tensor, ranked: Tensor, values: int, rows: int) -> tuple[Tensor, Tensor]:
    """1 + the last column of ``ranked`` whose class occurs, 0 for none (B,), and the same per pixel (B, H, W)."""
    batch, columns = ranked.shape
    # One table per image from label value to column of `ranked`; entries 0 and -1 are for labels out of range.
    dtype = torch.uint8 if columns < 256 else torch.int32
    table = torch.zeros(batch, values + 2, dtype=dtype, device=labels.device)
    column = torch.arange(1, columns + 1, device=labels.device).to(dtype).expand(batch, columns)
    table.scatter_(1, ranked.clamp(-1, values) + 1, column)
    table[:, 0] = 0
    table[:, -1] = 0

    wide = torch.int64 if labels.dtype == torch.int64 else torch.int32
    offset = torch.arange(batch, dtype=wide, device=labels.device)[:, None] * (values + 2) + 1
    places = []
    for part in _row_blocks(labels, rows):
        entry = labels[:, part].flatten(1).to(wide).clamp(-1, values) + offset
        places.append(table.view(-1).index_select(0, entry.view(-1)).view(labels[:, part].shape))
    best = torch.stack([part.flatten(1).amax(1) for part in places]).amax(0).long()
    return best, torch.cat(places, dim=1)


def _compare(labels: Tensor, ranked: Tensor, rows: int) -> Tensor:
    """(B, 1): the last class of ``ranked`` that occurs in the image, -1 for none, by comparison with every byte."""
    ranked = torch.constant_pad_nd(ranked, (1, 0), -1)
    columns = ranked.shape[1]
    values = ranked.to(torch.uint8)[:, :, None]
    # Reuse one buffer: allocation costs as much as the comparison.
    differences = torch.empty(0, dtype=torch.uint8, device=labels.device)
    least = []
    for part in _row_blocks(labels, max(1, 8 // columns) * rows):
        block = labels[:, part].flatten(1)[:, None]
        # On bytes, xor is eight times as fast as ==.
        torch.bitwise_xor(block, values, out=differences.resize_(block.shape[0], columns, block.shape[2]))
        least.append(differences.amin(2))
    present = (torch.stack(least).amin(0) == 0) & (ranked >= 0) & (ranked < 256)
    return ranked.gather(1, (present * torch.arange(columns, device=labels.device)).amax(1, keepdim=True))


def _narrow(labels: Tensor) -> Tensor:
    """The labels as bytes if they fit, which are faster to read."""
    if labels.dtype not in (torch.int16, torch.int32, torch.int64) or not labels.numel():
        return labels
    narrow = torch.empty(labels.shape, dtype=torch.uint8, device=labels.device)
    for image, out in zip(labels, narrow, strict=True):  # by image, for the cache
        low, high = image.aminmax()
        if low < 0 or high > 255:
            return labels
        out.copy_(image)
    return narrow


def _equal(labels: Tensor, value: Tensor) -> Tensor:
    """``labels == value`` as bytes. On the CPU, a result in the operands' dtype is vectorised, bool is not."""
    if labels.dtype == torch.uint8:
        return labels.clone(memory_format=torch.contiguous_format).eq_(value)
    return (labels == value).contiguous().view(torch.uint8)


def _row_sums(ones: Tensor) -> Tensor:
    """(B, H) int32 sums of (B, H, W) bytes 0 or 1, eight columns at once as the bytes of a word if W allows."""
    words = ones.shape[2] // 8
    if ones.shape[2] % 8 or words > 255:
        return ones.sum(2, dtype=torch.int32)
    by_byte = ones.view(torch.int64).sum(2, keepdim=True).view(torch.uint8)
    return by_byte.sum(2, dtype=torch.int32)


def _row_blocks(labels: Tensor, rows: int) -> list[slice]:
    return [slice(row, row + rows) for row in range(0, labels.shape[1], rows)]


def _sums_anywhere(labels: Tensor, before: Tensor | None, weights: Tensor | None, num_classes: int) -> Tensor:
    keys = _keys(labels, before, num_classes, torch.int64).flatten(1)
    sums = torch.zeros(len(labels), _bins(num_classes, before), dtype=torch.int64, device=labels.device)
    if weights is None:
        return sums.scatter_add_(1, keys, torch.ones_like(keys))
    return sums.scatter_add_(1, keys, _units(weights).long().flatten(1)).double() / _UNITS


def _sums_on_cpu(labels: Tensor, before: Tensor | None, weights: Tensor | None, num_classes: int) -> Tensor:
    bins, pixels = _bins(num_classes, before), labels.shape[1] * labels.shape[2]
    dtype, tables = next((dtype, n) for dtype, n in _TABLES if n * bins <= torch.iinfo(dtype).max)
    tables = tables if pixels >= _MANY_PIXELS else 1
    whole = pixels // tables * tables
    offsets = sum(number * bins << number * (64 // tables) for number in range(tables))
    sums = _sums_fake(labels, before, weights, num_classes)
    for image, out in enumerate(sums):  # one image at a time, so that temporaries stay in the cache
        keys = _keys(labels[image], None if before is None else before[image], num_classes, dtype).flatten()
        if tables > 1:
            keys[:whole].view(torch.int64).add_(offsets)  # adds 0, bins, 2 bins, … to neighbours at once
        units = None if weights is None else _units(weights[image]).flatten()
        counts = torch.bincount(keys, units, minlength=tables * bins).view(tables, bins)
        torch.sum(counts, 0, out=out)
    return sums if weights is None else sums.div_(_UNITS)


def _sums_fake(labels: Tensor, before: Tensor | None, weights: Tensor | None, num_classes: int) -> Tensor:
    dtype = torch.int64 if weights is None else torch.float64
    return labels.new_empty((labels.shape[0], _bins(num_classes, before)), dtype=dtype)


def _bins(num_classes: int, before: Tensor | None) -> int:
    return (num_classes + 2) ** (1 if before is None else 2)


def _keys(labels: Tensor, before: Tensor | None, num_classes: int, dtype: torch.dtype) -> Tensor:
    """The columns of the pixels, contiguous."""
    out = _places(labels, num_classes, dtype)
    return out if before is None else out.add_(_places(before, num_classes, dtype), alpha=num_classes + 2)


def _places(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Class + 1; 0 below and C + 1 above all classes."""
    if labels.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        labels = labels.long()
    limits = torch.iinfo(labels.dtype)
    inside = labels.clamp(max(limits.min, -1), min(limits.max, num_classes))
    return inside.to(dtype, copy=True, memory_format=torch.contiguous_format).add_(1)


def _units(weights: Tensor) -> Tensor:
    """Weights as whole numbers of units, float64."""
    wide = weights.double() if weights.dtype == torch.float64 else weights.float()
    return (wide * _UNITS).nan_to_num_(0.0).clamp_(0, _UNITS).round_().double()


_find_pixels = operator(
    "find_pixels(Tensor labels, Tensor ranked, Tensor number) -> (Tensor, Tensor, Tensor)",
    _find_anywhere,
    _find_fake,
    cpu=_find_on_cpu,
)
_mine = operator(
    "mine(Tensor labels, Tensor ranked, Tensor draws, Tensor? image_counts, SymInt height, SymInt width, int limit)"
    " -> Tensor",
    _mine_anywhere,
    _mine_fake,
    kernel="launch_maps",
)
_label_sums = operator(
    "label_sums(Tensor labels, Tensor? before, Tensor? weights, int num_classes) -> Tensor",
    _sums_anywhere,
    _sums_fake,
    cpu=_sums_on_cpu,
)
