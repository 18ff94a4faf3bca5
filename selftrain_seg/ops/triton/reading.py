"""Kernels for reading, counting and selecting."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,import-not-found"

from __future__ import annotations

from selftrain_seg.ops.triton._walk import (
    first,
    jit,
    log1p,
    nothing_yet,
    place,
    read_class,
    read_next,
    read_pixels,
    score_of,
    step,
    tl,
)


@jit
def _usable(rest, valid, at, inside):
    """The sum of the others, NaN where the pixel must not be used."""
    if valid is not None:
        rest = tl.where(tl.load(valid + at, mask=inside, other=0) != 0, rest, float("nan"))
    return rest


@jit
def _store_prediction(predicted, confidence, label, rest, at, inside):
    tl.store(predicted + at, label.to(tl.int64), mask=inside)
    tl.store(confidence + at, tl.where(rest == rest, 1.0 / (1.0 + rest), 0.0), mask=inside)


@jit
def read_kernel(
    logits, valid, offset, labels, score, partial, height, width, stride_b, stride_c, stride_h, stride_w,
    C: tl.constexpr, PIXELS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Labels and scores, and the sums of p_c over the program's pixels."""
    image, row, columns, at, inside = place(height, width, PIXELS)
    start = first(logits, image, row, columns, stride_b, stride_h, stride_w)
    top, label, rest = read_pixels(start, offset, stride_c, inside, C, CHUNK)
    rest = _usable(rest, valid, at, inside)
    tl.store(labels + at, label.to(tl.int64), mask=inside)
    tl.store(score + at, score_of(rest), mask=inside)
    if partial is not None:  # p_c = exp(z_c - max z) / (1 + rest), added up over the program's pixels
        counts = inside & (rest == rest)
        scale = tl.where(counts, 1.0 / (1.0 + rest), 0.0)
        mine = partial + tl.program_id(0).to(tl.int64) * C
        for begin in range(0, C, CHUNK):
            for c in tl.static_range(CHUNK):
                z = read_next(start, begin + c, stride_c, inside, C, CHUNK)
                if offset is not None:
                    z += tl.load(offset + begin + c, mask=begin + c < C, other=0.0)
                share = tl.sum(tl.where(counts, tl.exp(z - top) * scale, 0.0))
                tl.store(mine + begin + c, share, mask=begin + c < C)


@jit
def count_kernel(
    logits, valid, counts, height, width, stride_b, stride_c, stride_h, stride_w, first_bin, bins_per_unit,
    C: tl.constexpr, PIXELS: tl.constexpr, CHUNK: tl.constexpr, BINS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Add the bins of the pixels' scores to the counts."""
    image, row, columns, at, inside = place(height, width, PIXELS)
    start = first(logits, image, row, columns, stride_b, stride_h, stride_w)
    _, label, rest = read_pixels(start, None, stride_c, inside, C, CHUNK)
    rest = _usable(rest, valid, at, inside)
    counted = inside & (rest == rest)
    bin = tl.floor(score_of(rest) * bins_per_unit) - first_bin
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
def _log(kc):
    """Logarithm of a float64 in float32, also of one that float32 cannot hold: by exponent and mantissa."""
    bits = kc.to(tl.int64, bitcast=True)
    exponent = ((bits >> 52) & 0x7FF) - 1023
    mantissa = ((bits & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000).to(tl.float64, bitcast=True).to(tl.float32)
    tiny = exponent.to(tl.float32) * 0.6931471805599453 + tl.log(mantissa)
    return tl.where((kc > 0.0) & (kc < 1e-30), tiny, tl.log(kc.to(tl.float32)))


@jit
def _bar(kc, SLACK: tl.constexpr):
    """The score that a float64 threshold stands for, less some roundings."""
    kc = tl.where(kc > 1.0, 1.0, kc)
    score = _log(kc) - tl.log((1.0 - kc).to(tl.float32))
    return tl.where(tl.abs(score) < float("inf"), score - SLACK * (1.0 + tl.abs(score)), score)


@jit
def _gain(kc, SLACK: tl.constexpr, LARGE: tl.constexpr):
    """What re-weighting by a float64 threshold adds to a class's log-probability: -log sigmoid of its bar."""
    bar = _bar(kc, SLACK)
    gain = log1p(tl.exp(-tl.abs(bar))) - tl.where(bar < 0.0, bar, 0.0)
    return tl.where(gain > LARGE, LARGE, gain)


@jit
def hard_kernel(
    logits, valid, thresholds, labels, predicted, confidence,
    height, width, stride_b, stride_c, stride_h, stride_w, ignore_index,
    C: tl.constexpr, PIXELS: tl.constexpr, CHUNK: tl.constexpr, SLACK: tl.constexpr,
):  # fmt: skip
    """The winner, where its score reaches its threshold."""
    image, row, columns, at, inside = place(height, width, PIXELS)
    start = first(logits, image, row, columns, stride_b, stride_h, stride_w)
    _, label, rest = read_pixels(start, None, stride_c, inside, C, CHUNK)
    rest = _usable(rest, valid, at, inside)
    keep = score_of(rest) >= _bar(tl.load(thresholds + label).to(tl.float64), SLACK)
    tl.store(labels + at, tl.where(keep, label, ignore_index).to(tl.int64), mask=inside)
    _store_prediction(predicted, confidence, label, rest, at, inside)


@jit
def reweighted_kernel(
    logits, valid, thresholds, labels, predicted, confidence,
    height, width, stride_b, stride_c, stride_h, stride_w, ignore_index,
    C: tl.constexpr, PIXELS: tl.constexpr, CHUNK: tl.constexpr, SLACK: tl.constexpr, LARGE: tl.constexpr,
):  # fmt: skip
    """The class that exceeds its own threshold most; compared as ``z_c - max z``, so the logits are walked twice."""
    image, row, columns, at, inside = place(height, width, PIXELS)
    start = first(logits, image, row, columns, stride_b, stride_h, stride_w)
    top, label, rest = read_pixels(start, None, stride_c, inside, C, CHUNK)
    rest = _usable(rest, valid, at, inside)
    value, best = tl.full(inside.shape, float("-inf"), tl.float32), tl.zeros_like(label)
    for c in range(C):
        gain = _gain(tl.load(thresholds + c).to(tl.float64), SLACK, LARGE)
        own = (read_class(start, c, stride_c, inside) - top) + gain
        best = tl.where(own > value, c, best)
        value = tl.where((own > value) | (own != own), own, value)
    keep = value >= log1p(rest)
    tl.store(labels + at, tl.where(keep, best, ignore_index).to(tl.int64), mask=inside)
    _store_prediction(predicted, confidence, label, rest, at, inside)


@jit
def soft_kernel(
    logits, valid, thresholds, alpha, labels, predicted, confidence, soft,
    height, width, stride_b, stride_c, stride_h, stride_w, soft_b, soft_c, soft_h, soft_w, ignore_index,
    C: tl.constexpr, PIXELS: tl.constexpr, CHUNK: tl.constexpr, SLACK: tl.constexpr, LARGE: tl.constexpr,
):  # fmt: skip
    """Walk three times: soft labels need the best first; after the first time the logits come from the cache."""
    image, row, columns, at, inside = place(height, width, PIXELS)
    start = first(logits, image, row, columns, stride_b, stride_h, stride_w)
    target = first(soft, image, row, columns, soft_b, soft_h, soft_w)
    top, label, rest = read_pixels(start, None, stride_c, inside, C, CHUNK)
    rest = _usable(rest, valid, at, inside)
    sharpness = (1.0 / tl.load(alpha).to(tl.float64)).to(tl.float32)
    value, best, others = nothing_yet(tl.zeros(inside.shape, tl.float32))
    for c in range(C):
        gain = _gain(tl.load(thresholds + c).to(tl.float64), SLACK, LARGE) * sharpness
        own = (read_class(start, c, stride_c, inside) - top) * sharpness + gain
        value, best, others = step(own, c, value, best, others)
    # logsumexp as max + log1p(the others): the others may be 1e-30 and still decide at a saturated pixel.
    keep = value + log1p(others) > log1p(rest) * sharpness
    scale = 1.0 / (1.0 + others)
    for c in range(C):
        gain = _gain(tl.load(thresholds + c).to(tl.float64), SLACK, LARGE) * sharpness
        own = (read_class(start, c, stride_c, inside) - top) * sharpness + gain
        share = tl.where(keep, tl.exp(own - value) * scale, 0.0)
        tl.store(target + tl.cast(c, tl.int64) * soft_c, share, mask=inside)
    tl.store(labels + at, tl.where(keep, best, ignore_index).to(tl.int64), mask=inside)
    _store_prediction(predicted, confidence, label, rest, at, inside)
