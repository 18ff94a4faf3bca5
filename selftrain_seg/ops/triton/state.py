"""Kernels on (B, H, W) maps of labels and confidences, and on vectors of C numbers."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,import-not-found"

from __future__ import annotations

from selftrain_seg.ops.triton._walk import double, jit, tl
from selftrain_seg.ops.triton.reading import add_keys


@jit
def _pixels(size, PIXELS: tl.constexpr):
    """Image and index in a (B, H, W) map of the program's pixels, and which are inside; ``size`` pixels per image."""
    runs = tl.cdiv(size, PIXELS)
    image = (tl.program_id(0) // runs).to(tl.int64)
    index = (tl.program_id(0) % runs).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    return image, image * size + index, index < size


@jit
def decide_kernel(
    labels, confidence, thresholds, decided, size, threshold_b, ignore_index,
    PIXELS: tl.constexpr, STRICT: tl.constexpr,
):  # fmt: skip
    """The label where the confidence reaches or exceeds the threshold of its class in its image."""
    image, at, inside = _pixels(size, PIXELS)
    label = tl.load(labels + at, mask=inside, other=0)
    m = tl.load(confidence + at, mask=inside, other=0.0)
    bar = tl.load(thresholds + image * threshold_b + label).to(tl.float32)
    keep = m > bar if STRICT else (m >= bar) & (m > 0.0)
    tl.store(decided + at, tl.where(keep, label, ignore_index), mask=inside)


@jit
def weigh_kernel(
    labels, confidence, belief, state, weighed, weights, size, sigmas, ignore_index, PIXELS: tl.constexpr,
):  # fmt: skip
    """The labels of usable pixels, and a Gaussian of how far their belief is below the mean."""
    _, at, inside = _pixels(size, PIXELS)
    label = tl.load(labels + at, mask=inside, other=0)
    usable = tl.load(confidence + at, mask=inside, other=0.0) > 0.0
    below = tl.load(belief + at, mask=inside, other=0.0) - tl.load(state + 1).to(tl.float32)
    below = tl.where(below < 0.0, below, 0.0) * sigmas
    spread = 2.0 * tl.load(state)
    spread = tl.where(spread > 1e-30, spread, 1e-30).to(tl.float32)
    tl.store(weighed + at, tl.where(usable, label, ignore_index), mask=inside)
    tl.store(weights + at, tl.where(usable, tl.exp(-(below * below) / spread), 0.0), mask=inside)


@jit
def follow_kernel(running, sums, number, momentum, size, SIZE: tl.constexpr, VARIANCE: tl.constexpr):
    """A moving average of sums divided by a number."""
    at = tl.arange(0, SIZE)
    inside, count, momentum = at < size, tl.load(number), double(momentum)
    divisor = tl.where(count > 1.0, count, 1.0)
    mean = tl.load(sums + at, mask=inside, other=0.0) / divisor
    if VARIANCE:
        second = tl.load(sums + 1) / divisor
        spread = mean - second * second
        mean = tl.where(at == 0, tl.where(spread > 0.0, spread, 0.0), mean)
    old = tl.load(running + at, mask=inside, other=0.0)
    moved = momentum * old + (1.0 - momentum) * mean
    tl.store(running + at, tl.where(count > 0.0, moved, old), mask=inside)


@jit
def discount_kernel(
    peaks, running, seen, sums, bars, images, upper, lower, beta, momentum,
    C: tl.constexpr, SIZE: tl.constexpr, SEEN: tl.constexpr,
):  # fmt: skip
    """Thresholds of each image from its peaks and a running confidence, which is first updated if there are sums."""
    at = tl.arange(0, SIZE)
    inside, momentum = at < C, double(momentum)
    r = tl.load(running + at, mask=inside, other=0.0)
    if sums is not None:
        count, before = tl.load(sums + C), tl.load(seen + at, mask=inside, other=0) != 0
        mean = tl.load(sums + at, mask=inside, other=0.0) / tl.where(count > 1.0, count, 1.0)
        new = (mean > SEEN) & (before == 0)
        moved = momentum * tl.where(new, mean, r) + (1.0 - momentum) * mean
        r = tl.where(count > 0.0, moved, r)
        tl.store(running + at, r, mask=inside)
        tl.store(seen + at, before | new, mask=inside)
    known = (1.0 - tl.exp(-r / double(beta))).to(tl.float32)
    for image in range(images):
        here = tl.cast(image, tl.int64) * C + at
        bar = upper * tl.load(peaks + here, mask=inside, other=0.0) * known
        tl.store(bars + here, tl.where(bar > lower, bar, lower), mask=inside)


@jit
def spread_kernel(
    labels, confidence, counts, size, first_bin, bins_per_unit, count_b,
    C: tl.constexpr, PIXELS: tl.constexpr, BINS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Count the log-odds of the confidences by image and class."""
    image, at, inside = _pixels(size, PIXELS)
    label = tl.load(labels + at, mask=inside, other=0).to(tl.int32)
    m = tl.load(confidence + at, mask=inside, other=0.0)
    bin = tl.floor((tl.log(m) - tl.log(1.0 - m)) * bins_per_unit) - first_bin
    bin = tl.where(m > 0.0, tl.minimum(tl.maximum(bin, 0.0), BINS - 1.0), 0.0)
    key = tl.where(m > 0.0, label * BINS + bin.to(tl.int32), -1)
    add_keys(counts + image * count_b, key, PIXELS, GROUP)


@jit
def _element(index, own, theta, counts, upto, bins, first_bin, bins_per_unit, BINS: tl.constexpr):
    """The index-th smallest of θ and the binned confidences, taken as uniform in each bin; 1 in the last bin."""
    wanted = tl.where(index > own, index - 1, index)
    bin = tl.sum((upto <= wanted).to(tl.int32))
    before = tl.sum(tl.where(bins < bin, counts, 0))
    here = tl.sum(tl.where(bins == bin, counts, 0))
    share = ((wanted - before).to(tl.float64) + 0.5) / tl.where(here > 0, here, 1).to(tl.float64)
    odds = (first_bin + bin.to(tl.float64) + share) / bins_per_unit
    value = tl.where(bin >= BINS - 1, 1.0, 1.0 / (1.0 + tl.exp(-odds)))
    return tl.where(index == own, theta, value)


@jit
def adapt_kernel(
    counts, thresholds, history, steps, first_bin, bins_per_unit, portion, momentum, gamma,
    C: tl.constexpr, BINS: tl.constexpr, CERTAIN: tl.constexpr,
):  # fmt: skip
    """Update the threshold of a class image by image; one program per class."""
    label, bins = tl.program_id(0), tl.arange(0, BINS)
    portion, momentum, gamma = double(portion), double(momentum), double(gamma)
    theta = tl.load(thresholds + label)
    tl.store(history + label, theta)
    for image in range(steps):
        row = tl.cast(image, tl.int64) * C + label
        here = tl.load(counts + row * BINS + bins)
        upto, size = tl.cumsum(here), tl.sum(here)
        power = tl.where(theta > 0.0, tl.exp(gamma * tl.log(theta)), tl.where(gamma == 0.0, 1.0, 0.0))
        share = 1.0 - portion * power
        place = tl.where(share > 0.0, share, 0.0) * size.to(tl.float64)
        # Number of confidences below θ, taken as uniform in each bin.
        edge = (tl.log(theta) - tl.log(1.0 - theta)) * bins_per_unit - first_bin
        part = tl.minimum(tl.maximum(edge - bins.to(tl.float64), 0.0), 1.0)
        own = tl.sum(tl.floor(part * here.to(tl.float64) + 0.5).to(tl.int32))
        low = tl.floor(place).to(tl.int32)
        below = _element(low, own, theta, here, upto, bins, first_bin, bins_per_unit, BINS)
        high = tl.minimum(low + 1, size)
        above = _element(high, own, theta, here, upto, bins, first_bin, bins_per_unit, BINS)
        psi = below + (above - below) * (place - low.to(tl.float64))
        moved = momentum * theta + (1.0 - momentum) * psi
        theta = tl.where(size > 0, tl.where(moved < 1.0, moved, CERTAIN), theta)
        tl.store(history + row + C, theta)


@jit
def table_kernel(
    labels, predicted, confidence, target, partial, size, ignore_index,
    C: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Five sums over the program's pixels for each class: predicted, labelled, known, correct, confidence."""
    _, at, inside = _pixels(size, PIXELS)
    label = tl.load(labels + at, mask=inside, other=-1)
    label = tl.where(label == ignore_index, -1, label)
    m = tl.load(confidence + at, mask=inside, other=0.0)
    guess = tl.where(m > 0.0, tl.load(predicted + at, mask=inside, other=-1), -1)
    if target is not None:
        truth = tl.load(target + at, mask=inside, other=-1).to(tl.int64)
        known = (truth >= 0) & (truth < C) & (truth != ignore_index)
    mine = partial + tl.program_id(0).to(tl.int64) * 5 * C
    for c in range(C):
        own = label == c
        tl.store(mine + c, tl.sum((guess == c).to(tl.int32)))
        tl.store(mine + C + c, tl.sum(own.to(tl.int32)))
        if target is None:
            tl.store(mine + 2 * C + c, 0.0)
            tl.store(mine + 3 * C + c, 0.0)
        else:
            tl.store(mine + 2 * C + c, tl.sum((own & known).to(tl.int32)))
            tl.store(mine + 3 * C + c, tl.sum((own & known & (truth == c)).to(tl.int32)))
        tl.store(mine + 4 * C + c, tl.sum(tl.where(own, m, 0.0).to(tl.float64)))


@jit
def rank_kernel(
    counts, share, found, rows, level, low, bin_width, rounding,
    BINS: tl.constexpr, BLOCK: tl.constexpr, RULE: tl.constexpr, TIE_SHARE: tl.constexpr,
):  # fmt: skip
    """A score of a row of counts by its rank; one program per row."""
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    start = counts + row.to(tl.int64) * BINS
    total = tl.zeros((BLOCK,), tl.int64)
    for begin in range(0, BINS, BLOCK):
        total += tl.load(start + begin + at, mask=begin + at < BINS, other=0)
    size = tl.sum(total)
    part = double(level) if share is None else tl.load(share + row)
    taken = tl.floor(size.to(tl.float64) * part * double(rounding))
    k = taken.to(tl.int64)
    if RULE == 1:
        k += 1
    if RULE == 2:
        k = size - k
    k = tl.minimum(tl.maximum(k, 1), size)
    # From the top, find the block in which k scores are reached and the number of scores above it; then the bin.
    above, block, over = size * 0, row * 0, size * 0
    for begin in range(0, BINS, BLOCK):
        bin = BINS - 1 - begin - at
        here = tl.sum(tl.load(start + bin, mask=bin >= 0, other=0))
        reached = (over < k) & (over + here >= k)
        block, above = tl.where(reached, begin, block), tl.where(reached, over, above)
        over += here
    bin = BINS - 1 - block - at
    number = tl.load(start + bin, mask=bin >= 0, other=0)
    place = tl.sum((tl.cumsum(number) < k - above).to(tl.int32))
    inside = tl.sum(tl.where(at == place, number, 0))
    above += tl.sum(tl.where(at < place, number, 0))
    part = (k - above).to(tl.float64) / tl.maximum(inside, 1).to(tl.float64)
    edge = tl.where((part >= 0.5) | (above == 0), 1.0, 0.0)
    tied = inside.to(tl.float64) > size.to(tl.float64) * TIE_SHARE
    from_high = (block + place).to(tl.float64) + tl.where(tied, edge, part)
    score = double(low) + (BINS - from_high) * double(bin_width)
    tl.store(found + row, tl.where(size > 0, score, float("nan")))
    tl.store(found + rows + row, taken)
