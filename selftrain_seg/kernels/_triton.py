"""The kernels themselves; this is the one file that imports Triton.

A program takes a run of pixels of one row and all their classes: one tile, read once, held in registers. So maximum,
differences and their exponentials are those of the plain path, and only the order of a sum and the last bits of
``exp`` and ``log`` can differ from it.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,import-not-found"

from __future__ import annotations

from typing import Any

try:
    import triton.language as tl
    from triton import jit
except ImportError:  # then nothing here is ever called, but the file can be imported

    def jit(function: Any) -> Any:
        return function


@jit
def _read(logits, height, width, stride_b, stride_c, stride_h, stride_w, C: tl.constexpr, TILE_C, PIXELS: tl.constexpr):
    """Differences to the largest logit (TILE_C, PIXELS), label, sum of the others, index in a (B, H, W) map, inside."""
    runs = tl.cdiv(width, PIXELS)
    row = (tl.program_id(0) // runs).to(tl.int64)
    column = (tl.program_id(0) % runs).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    inside = column < width
    classes = tl.arange(0, TILE_C)[:, None]
    start = logits + (row // height) * stride_b + (row % height) * stride_h
    at = start + (classes.to(tl.int64) * stride_c + column[None, :] * stride_w)
    z = tl.load(at, mask=(classes < C) & inside[None, :], other=float("-inf")).to(tl.float32)
    top = tl.max(z, axis=0)
    label = tl.min(tl.where(z == top[None, :], classes, C - 1), axis=0)  # the first of equals
    gaps = z - top[None, :]
    rest = tl.sum(tl.where(classes == label[None, :], 0.0, tl.exp(gaps)), axis=0)
    # A NaN among the others is in the sum already; a largest logit that is NaN or infinite says nothing either.
    rest = tl.where(tl.abs(top) < float("inf"), rest, float("nan"))
    return gaps, label, rest, row * width + column, inside


@jit
def _score(rest):
    """-log(rest), the log-odds. Of subnormal numbers, which a GPU's logarithm takes for 0, a value above all bins."""
    subnormal = (rest > 0.0) & (rest < 1.1754944e-38)
    return tl.where(subnormal, 87.5, -tl.log(rest))


@jit
def _log1p(x):
    """log(1 + x) for x >= 0, to a few roundings also where 1 + x rounds to 1."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / (u - 1.0)))


@jit
def top_kernel(
    logits, labels, log_confidence, height, width, stride_b, stride_c, stride_h, stride_w,
    C: tl.constexpr, TILE_C: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    _, label, rest, at, inside = _read(logits, height, width, stride_b, stride_c, stride_h, stride_w, C, TILE_C, PIXELS)
    tl.store(labels + at, label.to(tl.int64), mask=inside)
    tl.store(log_confidence + at, -_log1p(rest), mask=inside)


@jit
def count_kernel(
    logits, counts, height, width, stride_b, stride_c, stride_h, stride_w, first_bin, bins_per_unit,
    C: tl.constexpr, TILE_C: tl.constexpr, PIXELS: tl.constexpr, BINS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    _, label, rest, _, inside = _read(logits, height, width, stride_b, stride_c, stride_h, stride_w, C, TILE_C, PIXELS)
    counted = inside & (rest == rest)
    place = tl.floor(_score(rest) * bins_per_unit) - first_bin
    place = tl.where(counted, tl.minimum(tl.maximum(place, 0.0), BINS - 1.0), 0.0)
    key = tl.where(counted, label * BINS + place.to(tl.int32), -1)
    # Saturated pixels of a class share a bin, and neighbours share a class. So equal keys of a group are added up
    # first, and the first pixel with each key carries the sum: one atomic where there would be up to GROUP.
    key = tl.reshape(key, (PIXELS // GROUP, GROUP))
    same = key[:, :, None] == key[:, None, :]
    lane = tl.arange(0, GROUP)
    earlier = lane[None, None, :] < lane[None, :, None]
    number = tl.sum(same.to(tl.int32), axis=2)
    first = tl.sum((same & earlier).to(tl.int32), axis=2) == 0
    tl.atomic_add(counts + key, number.to(tl.int64), mask=first & (key >= 0), sem="relaxed")


@jit
def hard_kernel(
    logits, bar, labels, predicted, confidence, height, width, stride_b, stride_c, stride_h, stride_w, ignore_index,
    C: tl.constexpr, TILE_C: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    _, label, rest, at, inside = _read(logits, height, width, stride_b, stride_c, stride_h, stride_w, C, TILE_C, PIXELS)
    keep = _score(rest) >= tl.load(bar + label)
    tl.store(labels + at, tl.where(keep, label, ignore_index).to(tl.int64), mask=inside)
    tl.store(predicted + at, label.to(tl.int64), mask=inside)
    tl.store(confidence + at, tl.where(rest == rest, tl.exp(-_log1p(rest)), 0.0), mask=inside)


@jit
def reweighted_kernel(
    logits, gain, labels, predicted, confidence, height, width, stride_b, stride_c, stride_h, stride_w, ignore_index,
    C: tl.constexpr, TILE_C: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    gaps, label, rest, at, inside = _read(
        logits, height, width, stride_b, stride_c, stride_h, stride_w, C, TILE_C, PIXELS
    )
    classes = tl.arange(0, TILE_C)
    added = tl.load(gain + classes, mask=classes < C, other=float("-inf"))
    weighted = gaps + added[:, None]
    value = tl.max(weighted, axis=0)
    best = tl.min(tl.where(weighted == value[None, :], classes[:, None], C - 1), axis=0)
    log_norm = _log1p(rest)
    # As in the plain path a threshold that is NaN selects nothing; the maximum would pass over it.
    keep = (value >= log_norm) & (tl.max((added != added).to(tl.int32), axis=0) == 0)
    tl.store(labels + at, tl.where(keep, best, ignore_index).to(tl.int64), mask=inside)
    tl.store(predicted + at, label.to(tl.int64), mask=inside)
    tl.store(confidence + at, tl.where(rest == rest, tl.exp(-log_norm), 0.0), mask=inside)
