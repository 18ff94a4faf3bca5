"""Launch the kernels on maps: one function for each operator, of the same name; see ``launch``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selftrain_seg.ops.triton import maps
from selftrain_seg.ops.triton._plan import launch_one, power_of_2

_PIXELS = 128  # per program of one warp, so that its loops do not wait for other warps
_CHUNK, _PARTS = 2048, 1024
_GROUP = 8  # numbers that a program compares with all others at once
_FEW_PIXELS = 32
_BLOCK = 512  # positions of an axis at once
_MOST_DRAWS = 1024


def connected_components(plain: Any, mask: Tensor) -> Tensor:
    """Three launches."""
    batch, height, width = mask.shape
    if height * width >= 2**31:  # pixel numbers need 64 bits
        out: Tensor = plain(mask)
        return out
    mask, sizes = mask.contiguous(), (height, width, _PIXELS)
    parents = torch.empty(mask.shape, dtype=torch.int32, device=mask.device)
    roots = torch.empty(mask.shape, dtype=torch.int64, device=mask.device)
    programs = batch * height * -(-width // _PIXELS)
    launch_one(maps.start_kernel, programs, mask, parents, *sizes, num_warps=1)
    launch_one(maps.unite_kernel, programs, mask, parents, *sizes, num_warps=1)
    launch_one(maps.root_kernel, programs, parents, roots, *sizes, num_warps=1)
    return roots


def mine(_: Any, labels: Tensor, ranked: Tensor, draws: Tensor, __: Any, *rest: Any) -> Tensor:
    """Two launches. Stored counts are not used, as the labels are read only once."""
    height, width, limit = rest
    labels, ranked, draws = labels.contiguous(), ranked.contiguous(), draws.contiguous()
    (batch, columns), pixels = ranked.shape, labels[:1].numel()
    parts = -(-pixels // _CHUNK)
    counts = torch.empty((batch, columns, parts), dtype=torch.int32, device=labels.device)
    corners = torch.empty((batch, 2), dtype=torch.int64, device=labels.device)
    numbers = max(0, labels.shape[1] - height), max(0, labels.shape[2] - width), height // 2, width // 2, limit
    launch_one(maps.tally_kernel, batch * parts, labels, ranked, counts, pixels, parts, columns, _CHUNK)
    launch_one(
        maps.mine_kernel, batch, labels, ranked, counts, draws, corners,
        pixels, labels.shape[2], parts, columns, draws.stride(0), *numbers, _CHUNK, _PARTS,
    )  # fmt: skip
    return corners


def draw_classes(_: Any, labels: Tensor, keys: Tensor, ignore_index: int, up: bool) -> Tensor:
    """Three launches, plus one to clear their outputs."""
    labels, keys = labels.contiguous(), keys.contiguous()
    (batch, values), pixels = keys.shape, labels[:1].numel()
    parts = -(-pixels // _CHUNK)
    present = torch.zeros(keys.shape, dtype=torch.int8, device=keys.device)
    drawn = torch.empty_like(present)
    among = torch.empty(labels.shape, dtype=torch.bool, device=keys.device)
    launch_one(maps.present_kernel, batch * parts, labels, present, pixels, parts, values, _CHUNK)
    launch_one(maps.half_kernel, batch, present, keys, drawn, ignore_index, int(up), values, _GROUP, num_warps=8)
    launch_one(maps.among_kernel, batch * parts, labels, drawn, among, pixels, parts, values, _CHUNK)
    return among


def distinct(plain: Any, draws: Tensor, population: int, count: int) -> Tensor:
    """One launch."""
    if len(draws) > _MOST_DRAWS:
        out: Tensor = plain(draws, population, count)
        return out
    draws = draws.contiguous()
    chosen, room = draws.new_empty(count), max(_GROUP, power_of_2(len(draws)))
    launch_one(maps.distinct_kernel, 1, draws, chosen, population, len(draws), count, room, _GROUP, num_warps=8)
    return chosen


def directions(__: Any, logits: Tensor, chosen: Tensor) -> Tensor:
    """One launch."""
    _, classes, height, width = logits.shape
    chosen = chosen.contiguous()
    found = torch.empty((len(chosen), classes), dtype=torch.float64, device=logits.device)
    sizes = height * width, len(chosen), width, *logits.stride()
    programs = -(-len(chosen) // _FEW_PIXELS)
    launch_one(maps.direction_kernel, programs, logits, chosen, found, *sizes, classes, _FEW_PIXELS, num_warps=1)
    return found


def fit(_: Any, rows: Tensor, columns: Tensor, factor: Tensor, chance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One launch."""
    (batch, height), width = rows.shape, columns.shape[1]
    where = torch.empty((batch, 3, height + width), dtype=torch.int64, device=rows.device)
    inside = torch.empty((batch, height + width), dtype=torch.bool, device=rows.device)
    share = torch.empty((batch, height + width), dtype=torch.float64, device=rows.device)
    given = (tensor.contiguous() for tensor in (rows, columns, factor, chance))
    launch_one(maps.fit_kernel, batch, *given, where, inside, share, height, width, _BLOCK)
    return where, inside, share


def topmost(_: Any, numbers: Tensor, where: Tensor, inside: Tensor) -> Tensor:
    """One launch."""
    batch, height, width = numbers.shape
    numbers, where, inside = numbers.contiguous(), where.contiguous(), inside.contiguous()
    top = torch.empty_like(numbers)
    programs = batch * -(-height * width // _BLOCK)
    launch_one(maps.topmost_kernel, programs, numbers, where, inside, top, where.shape[1], height, width, _BLOCK)
    return top
