"""Kernels for reading, counting and selecting."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,import-not-found"

from __future__ import annotations

from selftrain_seg.ops.triton._walk import (
    add_up,
    double,
    finish,
    first,
    jit,
    lanes,
    largest_of,
    log1p,
    merge,
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
    """The sum of the others, NaN at unusable pixels."""
    if valid is not None:
        rest = tl.where(tl.load(valid + at, mask=inside, other=0) != 0, rest, float("nan"))
    return rest


@jit
def _store_prediction(predicted, confidence, label, rest, at, inside):
    tl.store(predicted + at, label.to(tl.int64), mask=inside)
    tl.store(confidence + at, tl.where(rest == rest, 1.0 / (1.0 + rest), 0.0), mask=inside)


@jit
def read_kernel(
    logits, valid, labels, score, height, width, stride_b, stride_c, stride_h, stride_w,
    C: tl.constexpr, PIXELS: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    """Labels and scores, or log-confidences."""
    image, row, columns, at, inside = place(height, width, PIXELS, LANES)
    start, lane = first(logits, image, row, columns, stride_b, stride_h, stride_w), lanes(PIXELS, LANES)
    _, label, rest = read_pixels(start, stride_c, inside, lane, C, CHUNK, LANES)
    inside = inside & (lane == 0)
    rest = _usable(rest, valid, at, inside)
    tl.store(labels + at, label.to(tl.int64), mask=inside)
    if LOG:
        tl.store(score + at, -log1p(rest), mask=inside)
    else:
        tl.store(score + at, score_of(rest), mask=inside)


@jit
def _relative(z, relative_to, c, LEAST: tl.constexpr):
    """The logits of class c, minus the logarithm of the probability to divide by, if given."""
    if relative_to is not None:
        p = tl.load(relative_to + c)
        z -= _log(tl.where(p > LEAST, p, LEAST))
    return z


@jit
def observe_kernel(
    logits, valid, relative_to, labels, confidence, partial, peaks,
    height, width, stride_b, stride_c, stride_h, stride_w, floor,
    C: tl.constexpr, PIXELS: tl.constexpr, CHUNK: tl.constexpr, LEAST: tl.constexpr,
    MOMENTS: tl.constexpr, PROBS: tl.constexpr, COUNTS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Labels and confidences, SIZE sums over the program's pixels, and their peaks by class."""
    image, row, columns, at, inside = place(height, width, PIXELS)
    start = first(logits, image, row, columns, stride_b, stride_h, stride_w)
    top, label, rest = nothing_yet(tl.zeros(inside.shape, tl.float32))
    for begin in range(0, C, CHUNK):
        for c in tl.static_range(CHUNK):
            z = read_next(start, begin + c, stride_c, inside, C, CHUNK)
            z = _relative(z, relative_to, tl.minimum(begin + c, C - 1), LEAST)
            top, label, rest = step(z, begin + c, top, label, rest)
    rest = _usable(finish(top, rest), valid, at, inside)
    usable = inside & (rest == rest)
    m = tl.where(usable, 1.0 / (1.0 + rest), 0.0)
    tl.store(labels + at, label.to(tl.int64), mask=inside)
    tl.store(confidence + at, m, mask=inside)
    program = tl.program_id(0).to(tl.int64)
    if partial is not None:
        mine = partial + program * SIZE
        tl.store(mine + SIZE - 1, tl.sum(usable.to(tl.int32)).to(tl.float64))
        if MOMENTS:
            exact = m.to(tl.float64)
            tl.store(mine, tl.sum(exact * exact))
            tl.store(mine + 1, tl.sum(exact))
            mine += 2
    if PROBS or COUNTS or peaks is not None:
        sure = usable & (m >= floor)
        for c in range(C):
            own = label == c
            if PROBS:  # p_c = exp(z_c - max z) / (1 + rest), which is m
                z = _relative(read_class(start, c, stride_c, inside), relative_to, c, LEAST)
                share = tl.sum(tl.where(usable, tl.exp(z - top) * m, 0.0))
                tl.store(mine + c, share.to(tl.float64))
            if COUNTS:
                tl.store(mine + PROBS * C + c, tl.sum((own & sure).to(tl.int32)).to(tl.float64))
            if peaks is not None:
                tl.store(peaks + program * C + c, tl.max(tl.where(own, m, 0.0)))
        if COUNTS:
            number = tl.sum((usable & (m < floor)).to(tl.int32))
            tl.store(mine + PROBS * C + C, number.to(tl.float64))


@jit
def add_keys(counts, key, PIXELS: tl.constexpr, GROUP: tl.constexpr):
    """Add 1 to the counts at each non-negative key.

    Neighbouring pixels often share a class and a bin. Equal keys of a group are therefore added up first, and the first
    pixel with each key adds the sum: one atomic operation instead of up to GROUP.
    """
    key = tl.reshape(key, (PIXELS // GROUP, GROUP))
    same = key[:, :, None] == key[:, None, :]
    lane = tl.arange(0, GROUP)
    earlier = lane[None, None, :] < lane[None, :, None]
    equals = tl.sum(same.to(tl.int32), axis=2)
    alone = tl.sum((same & earlier).to(tl.int32), axis=2) == 0
    tl.atomic_add(counts + key, equals.to(counts.dtype.element_ty), mask=alone & (key >= 0), sem="relaxed")


@jit
def count_kernel(
    logits, valid, counts, height, width, stride_b, stride_c, stride_h, stride_w, first_bin, bins_per_unit,
    C: tl.constexpr, PIXELS: tl.constexpr, CHUNK: tl.constexpr, BINS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Add the bins of the pixels' scores to the counts."""
    image, row, columns, at, inside = place(height, width, PIXELS)
    start = first(logits, image, row, columns, stride_b, stride_h, stride_w)
    _, label, rest = read_pixels(start, stride_c, inside, lanes(PIXELS, 1), C, CHUNK, 1)
    rest = _usable(rest, valid, at, inside)
    counted = inside & (rest == rest)
    bin = tl.floor(score_of(rest) * bins_per_unit) - first_bin
    bin = tl.where(counted, tl.minimum(tl.maximum(bin, 0.0), BINS - 1.0), 0.0)
    key = tl.where(counted, label * BINS + bin.to(tl.int32), -1)
    add_keys(counts, key, PIXELS, GROUP)


@jit
def _log(kc):
    """Logarithm of a float64 in float32, from exponent and mantissa, also outside the range of float32."""
    bits = kc.to(tl.int64, bitcast=True)
    exponent = ((bits >> 52) & 0x7FF) - 1023
    mantissa = ((bits & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000).to(tl.float64, bitcast=True).to(tl.float32)
    tiny = exponent.to(tl.float32) * 0.6931471805599453 + tl.log(mantissa)
    return tl.where((kc > 0.0) & (kc < 1e-30), tiny, tl.log(kc.to(tl.float32)))


@jit
def _bar(kc, SLACK: tl.constexpr):
    """The score of a float64 threshold, minus a slack of some roundings."""
    kc = tl.where(kc > 1.0, 1.0, kc)
    score = _log(kc) - tl.log((1.0 - kc).to(tl.float32))
    return tl.where(tl.abs(score) < float("inf"), score - SLACK * (1.0 + tl.abs(score)), score)


@jit
def _gain(kc, SLACK: tl.constexpr, LARGE: tl.constexpr):
    """Term that re-weighting by a float64 threshold adds to the log-probability: -log sigmoid of its bar."""
    bar = _bar(kc, SLACK)
    gain = log1p(tl.exp(-tl.abs(bar))) - tl.where(bar < 0.0, bar, 0.0)
    return tl.where(gain > LARGE, LARGE, gain)


@jit
def _threshold(thresholds, level, c):
    """The float64 threshold of class c, or the common one from its bits."""
    return double(level) if thresholds is None else tl.load(thresholds + c).to(tl.float64)


@jit
def _gains(
    thresholds, level, begin, C: tl.constexpr, PIXELS: tl.constexpr, LANES: tl.constexpr,
    SLACK: tl.constexpr, LARGE: tl.constexpr,
):  # fmt: skip
    """The gains of the classes from ``begin``, one per lane, computed once for all pixels."""
    if LANES == 1:
        gain = _gain(_threshold(thresholds, level, tl.minimum(begin, C - 1)), SLACK, LARGE)
        return tl.zeros((PIXELS,), tl.float32) + gain
    else:  # noqa: RET505, both branches would be compiled without it
        c = tl.minimum(begin + tl.arange(0, LANES), C - 1)
        gain = _gain(_threshold(thresholds, level, c), SLACK, LARGE) + tl.zeros((LANES,), tl.float32)
        return tl.reshape(tl.broadcast_to(gain[None, :], (PIXELS, LANES)), (PIXELS * LANES,))


@jit
def select_kernel(
    logits, valid, thresholds, labels, predicted, confidence,
    height, width, stride_b, stride_c, stride_h, stride_w, level, ignore_index,
    C: tl.constexpr, PIXELS: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
    SLACK: tl.constexpr, LARGE: tl.constexpr, REWEIGHTED: tl.constexpr,
):  # fmt: skip
    """The winner where its score reaches its threshold, or the class that exceeds its own threshold most."""
    image, row, columns, at, inside = place(height, width, PIXELS, LANES)
    start, lane = first(logits, image, row, columns, stride_b, stride_h, stride_w), lanes(PIXELS, LANES)
    if REWEIGHTED:
        # Compare z_c - max z with the largest so far, to keep precision: 20 + 1e-12 is 20, and -1e9 + 3 is -1e9.
        top, label, rest = nothing_yet(tl.zeros(inside.shape, tl.float32))
        best, best_z, best_gain = label, top, tl.zeros_like(top)
        for begin in range(0, C, CHUNK):
            for each in tl.static_range(0, CHUNK, LANES):
                c = begin + each + lane
                z = read_next(start, c, stride_c, inside, C, CHUNK)
                gain = _gains(thresholds, level, begin + each, C, PIXELS, LANES, SLACK, LARGE)
                top, label, rest = step(z, c, top, label, rest)
                better = ((z - top) + gain > (best_z - top) + best_gain) | (gain != gain)  # NaN stays
                best = tl.where(better, c, best)
                best_z, best_gain = tl.where(better, z, best_z), tl.where(better, gain, best_gain)
        top, label, rest = merge(top, label, rest, LANES, C)
        value = (best_z - top) + best_gain
        if LANES > 1:
            # A lane with only logits of -inf has NaN there, like a lane with a NaN threshold.
            spoilt = add_up((best_gain != best_gain).to(tl.int32), LANES) > 0
            value = tl.where(best_z == float("-inf"), float("-inf"), value)
            largest = largest_of(value, LANES)
            best = -largest_of(tl.where(value == largest, -best, -C), LANES)
            value = tl.where(spoilt, float("nan"), largest)
        rest = _usable(finish(top, rest), valid, at, inside)
        keep = value >= log1p(rest)
    else:
        _, label, rest = read_pixels(start, stride_c, inside, lane, C, CHUNK, LANES)
        rest = _usable(rest, valid, at, inside)
        best, keep = label, score_of(rest) >= _bar(_threshold(thresholds, level, label), SLACK)
    mine = inside & (lane == 0)
    tl.store(labels + at, tl.where(keep, best, ignore_index).to(tl.int64), mask=mine)
    _store_prediction(predicted, confidence, label, rest, at, mine)


@jit
def soft_kernel(
    logits, valid, thresholds, alpha, labels, predicted, confidence, soft,
    height, width, stride_b, stride_c, stride_h, stride_w, soft_b, soft_c, soft_h, soft_w,
    level, sharpness, ignore_index,
    C: tl.constexpr, PIXELS: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
    SLACK: tl.constexpr, LARGE: tl.constexpr,
):  # fmt: skip
    """Loop over the classes three times, as soft labels need the maximum first; later loops read from the cache."""
    image, row, columns, at, inside = place(height, width, PIXELS, LANES)
    start, lane = first(logits, image, row, columns, stride_b, stride_h, stride_w), lanes(PIXELS, LANES)
    target = first(soft, image, row, columns, soft_b, soft_h, soft_w)
    top, label, rest = read_pixels(start, stride_c, inside, lane, C, CHUNK, LANES)
    rest = _usable(rest, valid, at, inside)
    if alpha is not None:
        sharpness = (1.0 / tl.load(alpha).to(tl.float64)).to(tl.float32)
    value, best, others = nothing_yet(tl.zeros(inside.shape, tl.float32))
    for begin in range(0, C, LANES):
        c = begin + lane
        gain = _gains(thresholds, level, begin, C, PIXELS, LANES, SLACK, LARGE) * sharpness
        own = (read_class(start, c, stride_c, inside & (c < C)) - top) * sharpness + gain
        value, best, others = step(tl.where(c < C, own, float("-inf")), c, value, best, others)
    value, best, others = merge(value, best, others, LANES, C)
    # logsumexp as max + log1p(others): at a saturated pixel, others of 1e-30 still decide.
    keep = value + log1p(others) > log1p(rest) * sharpness
    scale = 1.0 / (1.0 + others)
    for begin in range(0, C, LANES):
        c = begin + lane
        gain = _gains(thresholds, level, begin, C, PIXELS, LANES, SLACK, LARGE) * sharpness
        own = (read_class(start, c, stride_c, inside & (c < C)) - top) * sharpness + gain
        share = tl.where(keep, tl.exp(own - value) * scale, 0.0)
        tl.store(target + tl.cast(c, tl.int64) * soft_c, share, mask=inside & (c < C))
    mine = inside & (lane == 0)
    tl.store(labels + at, tl.where(keep, best, ignore_index).to(tl.int64), mask=mine)
    _store_prediction(predicted, confidence, label, rest, at, mine)
