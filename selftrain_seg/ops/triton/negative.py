"""Kernels for negative learning, forward and backward; ``sums.finish_kernel`` adds up."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,import-not-found"

from __future__ import annotations

from selftrain_seg.ops.triton._walk import add_up, first, jit, lanes, log1p, place, read_class, tl


@jit
def _softplus(z):
    """log(1 + exp(z))."""
    return tl.where(z > 0.0, z, 0.0) + log1p(tl.exp(-tl.abs(z)))


@jit
def negative_forward_kernel(
    logits, probs, pixel_weight, loss, partial,
    height, width, stride_b, stride_c, stride_h, stride_w, probs_b, probs_c, probs_h, probs_w, chance, factor,
    C: tl.constexpr, PIXELS: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The loss as a map, or its sum over the program's pixels and the number of pairs in it."""
    image, row, columns, at, inside = place(height, width, PIXELS, LANES)
    start = first(logits, image, row, columns, stride_b, stride_h, stride_w)
    teacher = first(probs, image, row, columns, probs_b, probs_h, probs_w)
    lane = lanes(PIXELS, LANES)
    value, pairs = tl.zeros(inside.shape, tl.float32), tl.zeros(inside.shape, tl.float32)
    for begin in range(0, C, CHUNK):
        for each in tl.static_range(0, CHUNK, LANES):
            c = begin + each + lane
            there = inside & (c < C)
            counts = there & (read_class(teacher, c, probs_c, there) <= chance)
            value += tl.where(counts, _softplus(read_class(start, c, stride_c, there)), 0.0)
            pairs += counts.to(tl.float32)
    value, pairs = add_up(value, LANES), add_up(pairs, LANES)
    mine = inside & (lane == 0)
    if pixel_weight is not None:
        value *= tl.load(pixel_weight + at, mask=mine & (pairs > 0.0), other=0.0).to(tl.float32)
    if loss is not None:
        tl.store(loss + at, factor * value, mask=mine)
    else:
        place_of = partial + tl.program_id(0)
        tl.store(place_of, tl.sum(tl.where(mine, value, 0.0)))
        tl.store(place_of + tl.num_programs(0), tl.sum(tl.where(mine, pairs, 0.0)))


@jit
def negative_backward_kernel(
    grad, logits, probs, pixel_weight, scale, result,
    height, width, stride_b, stride_c, stride_h, stride_w, probs_b, probs_c, probs_h, probs_w,
    result_b, result_c, result_h, result_w, chance, grad_p,
    C: tl.constexpr, PIXELS: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The gradient of the logits, given that of the loss or of its map."""
    image, row, columns, at, inside = place(height, width, PIXELS, LANES)
    start = first(logits, image, row, columns, stride_b, stride_h, stride_w)
    teacher = first(probs, image, row, columns, probs_b, probs_h, probs_w)
    out = first(result, image, row, columns, result_b, result_h, result_w)
    lane = lanes(PIXELS, LANES)
    factor = tl.load(grad + at * grad_p, mask=inside, other=0.0).to(tl.float32) * tl.load(scale).to(tl.float32)
    if pixel_weight is not None:
        factor *= tl.load(pixel_weight + at, mask=inside, other=0.0).to(tl.float32)
    for begin in range(0, C, CHUNK):
        for each in tl.static_range(0, CHUNK, LANES):
            c = begin + each + lane
            there = inside & (c < C)
            counts = read_class(teacher, c, probs_c, there) <= chance
            z = read_class(start, c, stride_c, there)
            e = tl.exp(-tl.abs(z))
            sigmoid = tl.where(z >= 0.0, 1.0, e) / (1.0 + e)
            gradient = tl.where(counts, sigmoid * factor, 0.0).to(result.dtype.element_ty)
            tl.store(out + tl.cast(c, tl.int64) * result_c, gradient, mask=there)
