"""Kernels for the fairness loss: sums by class, the loss from them, and the gradient."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,import-not-found"

from __future__ import annotations

from selftrain_seg.ops.triton._walk import add_up, first, jit, lanes, log1p, place, read_next, read_pixels, tl


@jit
def fairness_forward_kernel(
    logits, mask, norm, partial, height, width, stride_b, stride_c, stride_h, stride_w,
    C: tl.constexpr, PIXELS: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp, and for each class the sum of p_c and the number of predictions over the program's pixels."""
    image, row, columns, at, inside = place(height, width, PIXELS, LANES)
    start = first(logits, image, row, columns, stride_b, stride_h, stride_w)
    lane = lanes(PIXELS, LANES)
    top, label, rest = read_pixels(start, stride_c, inside, lane, C, CHUNK, LANES)
    tl.store(norm + at, top + log1p(rest), mask=inside & (lane == 0))
    chosen = inside
    if mask is not None:
        chosen = inside & (tl.load(mask + at, mask=inside, other=0) != 0)
    scale = tl.where(chosen, 1.0 / (1.0 + rest), 0.0)
    label = tl.where(chosen, label, -1)
    mine = partial + tl.program_id(0).to(tl.int64) * (2 * C)
    for begin in range(0, C, CHUNK):
        for each in tl.static_range(0, CHUNK, LANES):
            c = begin + each + lane
            z = read_next(start, c, stride_c, inside, C, CHUNK)
            p = tl.where(chosen, tl.exp(z - top) * scale, 0.0)
            own = (label == c).to(tl.float32)
            column = begin + each + tl.arange(0, LANES)
            tl.store(mine + column, tl.sum(tl.reshape(p, (PIXELS, LANES)), axis=0), mask=column < C)
            tl.store(mine + C + column, tl.sum(tl.reshape(own, (PIXELS, LANES)), axis=0), mask=column < C)


@jit
def fairness_finish_kernel(
    sums, running_probs, running_histogram, loss, slope, factor, C: tl.constexpr, MANY: tl.constexpr,
):  # fmt: skip
    """Compute the loss and its derivative with respect to each class's sum of probabilities; one program."""
    c = tl.arange(0, MANY)
    there = c < C
    total, counts = tl.load(sums + c, mask=there, other=0.0), tl.load(sums + C + c, mask=there, other=0.0)
    probs = tl.load(running_probs + c, mask=there, other=0.0).to(tl.float64)
    histogram = tl.load(running_histogram + c, mask=there, other=0).to(tl.float64)
    ratio = tl.where(counts > 0.0, total / tl.where(counts > 0.0, counts, 1.0), 0.0)
    running = tl.where(histogram > 0.0, probs / tl.where(histogram > 0.0, histogram, 1.0), 0.0)
    whole, all_running = tl.sum(ratio), tl.sum(running)
    seen = (counts > 0.0) & (histogram > 0.0)
    known = tl.where(seen, factor * running / tl.where(all_running > 0.0, all_running, 1.0), 0.0)
    whole = tl.where(whole > 0.0, whole, 1.0)
    share = tl.where(seen, ratio / whole, 1.0)
    tl.store(loss, tl.sum(known * tl.log(share.to(tl.float32)).to(tl.float64)).to(tl.float32))
    by_ratio = known / tl.where(ratio > 0.0, ratio, 1.0) - tl.sum(known) / whole
    found = tl.where(counts > 0.0, by_ratio / tl.where(counts > 0.0, counts, 1.0), 0.0)
    tl.store(slope + c, found.to(tl.float32), mask=there)


@jit
def fairness_backward_kernel(
    grad, logits, mask, slope, norm, result,
    height, width, stride_b, stride_c, stride_h, stride_w, result_b, result_c, result_h, result_w,
    C: tl.constexpr, PIXELS: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Gradient p (g - Σ g p). The sum is computed first; then the logits are read from the cache."""
    image, row, columns, at, inside = place(height, width, PIXELS, LANES)
    start = first(logits, image, row, columns, stride_b, stride_h, stride_w)
    out = first(result, image, row, columns, result_b, result_h, result_w)
    lane = lanes(PIXELS, LANES)
    total = tl.load(norm + at, mask=inside, other=0.0)
    chosen = inside
    if mask is not None:
        chosen = inside & (tl.load(mask + at, mask=inside, other=0) != 0)
    mean = tl.zeros(inside.shape, tl.float32)
    for begin in range(0, C, CHUNK):
        for each in tl.static_range(0, CHUNK, LANES):
            c = begin + each + lane
            z = read_next(start, c, stride_c, inside, C, CHUNK)
            mean += tl.load(slope + c, mask=c < C, other=0.0) * tl.exp(z - total)
    mean, arrived = add_up(mean, LANES), tl.load(grad).to(tl.float32)
    for begin in range(0, C, CHUNK):
        for each in tl.static_range(0, CHUNK, LANES):
            c = begin + each + lane
            z = read_next(start, c, stride_c, inside, C, CHUNK)
            g = tl.load(slope + c, mask=c < C, other=0.0)
            gradient = tl.where(chosen, arrived * tl.exp(z - total) * (g - mean), 0.0)
            there = inside & (c < C)
            tl.store(out + tl.cast(c, tl.int64) * result_c, gradient.to(result.dtype.element_ty), mask=there)
