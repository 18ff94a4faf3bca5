"""Kernels for statistics and selection."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,import-not-found"

from __future__ import annotations

from selftrain_seg.kernels._read import jit, log1p, place, read_scores, tl, write_tile


@jit
def _score(rest):
    """-log(rest), the log-odds. Of subnormal numbers, which a GPU's logarithm takes for 0, a value above all bins."""
    subnormal = (rest > 0.0) & (rest < 1.1754944e-38)
    return tl.where(subnormal, 87.5, -tl.log(rest))


@jit
def _store_prediction(predicted, confidence, label, rest, at, inside):
    tl.store(predicted + at, label.to(tl.int64), mask=inside)
    tl.store(confidence + at, tl.where(rest == rest, tl.exp(-log1p(rest)), 0.0), mask=inside)


@jit
def top_kernel(
    logits, labels, log_confidence, height, width, stride_b, stride_c, stride_h, stride_w,
    C: tl.constexpr, TILE_C: tl.constexpr, PIXELS: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    image, row, first, number, at, inside = place(height, width, PIXELS)
    _, label, rest = read_scores(
        logits, image, row, first, number, stride_b, stride_c, stride_h, stride_w, C, TILE_C, PIXELS, DENSE
    )
    tl.store(labels + at, label.to(tl.int64), mask=inside)
    tl.store(log_confidence + at, -log1p(rest), mask=inside)


@jit
def count_kernel(
    logits, counts, height, width, stride_b, stride_c, stride_h, stride_w, first_bin, bins_per_unit,
    C: tl.constexpr, TILE_C: tl.constexpr, PIXELS: tl.constexpr, DENSE: tl.constexpr,
    BINS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    image, row, first, number, _, inside = place(height, width, PIXELS)
    _, label, rest = read_scores(
        logits, image, row, first, number, stride_b, stride_c, stride_h, stride_w, C, TILE_C, PIXELS, DENSE
    )
    counted = inside & (rest == rest)
    bin = tl.floor(_score(rest) * bins_per_unit) - first_bin
    bin = tl.where(counted, tl.minimum(tl.maximum(bin, 0.0), BINS - 1.0), 0.0)
    key = tl.where(counted, label * BINS + bin.to(tl.int32), -1)
    # Saturated pixels of a class share a bin, and neighbours share a class. So equal keys of a group are added up
    # first, and the first pixel with each key carries the sum: one atomic where there would be up to GROUP.
    key = tl.reshape(key, (PIXELS // GROUP, GROUP))
    same = key[:, :, None] == key[:, None, :]
    lane = tl.arange(0, GROUP)
    earlier = lane[None, None, :] < lane[None, :, None]
    equals = tl.sum(same.to(tl.int32), axis=2)
    alone = tl.sum((same & earlier).to(tl.int32), axis=2) == 0
    tl.atomic_add(counts + key, equals.to(tl.int64), mask=alone & (key >= 0), sem="relaxed")


@jit
def hard_kernel(
    logits, bar, labels, predicted, confidence, height, width, stride_b, stride_c, stride_h, stride_w, ignore_index,
    C: tl.constexpr, TILE_C: tl.constexpr, PIXELS: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    image, row, first, number, at, inside = place(height, width, PIXELS)
    _, label, rest = read_scores(
        logits, image, row, first, number, stride_b, stride_c, stride_h, stride_w, C, TILE_C, PIXELS, DENSE
    )
    keep = _score(rest) >= tl.load(bar + label)
    tl.store(labels + at, tl.where(keep, label, ignore_index).to(tl.int64), mask=inside)
    _store_prediction(predicted, confidence, label, rest, at, inside)


@jit
def _weigh(gaps, gain, sharpness, C: tl.constexpr, TILE_C: tl.constexpr):
    """Re-weighted values, the largest, the first class with it, and whether a gain is NaN.

    As in the plain path a threshold that is NaN selects nothing; the maximum would pass over it.
    """
    classes = tl.arange(0, TILE_C)
    added = tl.load(gain + classes, mask=classes < C, other=0.0)
    # Said again which classes there are: -inf · 0 is NaN.
    values = tl.where(classes[:, None] < C, gaps * sharpness + added[:, None], float("-inf"))
    value = tl.max(values, axis=0)
    best = tl.min(tl.where(values == value[None, :], classes[:, None], C - 1), axis=0)
    return values, value, best, tl.max((added != added).to(tl.int32), axis=0) != 0


@jit
def reweighted_kernel(
    logits, gain, labels, predicted, confidence, height, width, stride_b, stride_c, stride_h, stride_w, ignore_index,
    C: tl.constexpr, TILE_C: tl.constexpr, PIXELS: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    image, row, first, number, at, inside = place(height, width, PIXELS)
    gaps, label, rest = read_scores(
        logits, image, row, first, number, stride_b, stride_c, stride_h, stride_w, C, TILE_C, PIXELS, DENSE
    )
    _, value, best, nan = _weigh(gaps, gain, 1.0, C, TILE_C)
    keep = (value >= log1p(rest)) & ~nan
    tl.store(labels + at, tl.where(keep, best, ignore_index).to(tl.int64), mask=inside)
    _store_prediction(predicted, confidence, label, rest, at, inside)


@jit
def soft_kernel(
    logits, gain, labels, predicted, confidence, soft, height, width, stride_b, stride_c, stride_h, stride_w,
    soft_b, soft_c, soft_h, soft_w, ignore_index, sharpness,
    C: tl.constexpr, TILE_C: tl.constexpr, PIXELS: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    image, row, first, number, at, inside = place(height, width, PIXELS)
    gaps, label, rest = read_scores(
        logits, image, row, first, number, stride_b, stride_c, stride_h, stride_w, C, TILE_C, PIXELS, DENSE
    )
    values, value, best, nan = _weigh(gaps, gain, sharpness, C, TILE_C)
    classes = tl.arange(0, TILE_C)[:, None]
    powers = tl.exp(values - value[None, :])
    # logsumexp as max + log1p(the others): the others may be 1e-30 and still decide at a saturated pixel.
    others = tl.sum(tl.where(classes == best[None, :], 0.0, powers), axis=0)
    keep = (value + log1p(others) > log1p(rest) * sharpness) & ~nan
    shares = tl.where(keep[None, :], powers * (1.0 / (1.0 + others))[None, :], 0.0)
    write_tile(
        soft, shares, image, row, first, number, soft_b, soft_c, soft_h, soft_w, C, TILE_C, PIXELS, DENSE
    )  # fmt: skip
    tl.store(labels + at, tl.where(keep, best, ignore_index).to(tl.int64), mask=inside)
    _store_prediction(predicted, confidence, label, rest, at, inside)
