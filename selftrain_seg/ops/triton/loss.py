"""Kernels for the loss, forward and backward; ``sums`` adds up the results of the first.

An argument that is None costs nothing, as its code is removed when the kernel is compiled. ``REGULARISER`` is 0 for
none, 1 kld, 2 entropy, 3 square, 4 reverse; ``REST`` tells whether the entropy of pixels without a label is used.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,import-not-found"

from __future__ import annotations

from selftrain_seg.ops.triton._walk import (
    add_up,
    finish,
    first,
    jit,
    lanes,
    log1p,
    nothing_yet,
    owner,
    place,
    read_class,
    read_label,
    read_next,
    tl,
)


@jit
def _add(
    z, y, c, label, top, rest, own, mass, linear, square, moment,
    C: tl.constexpr, SOFT: tl.constexpr, KLD: tl.constexpr, SQUARE: tl.constexpr, ENTROPY: tl.constexpr,
):  # fmt: skip
    """Add class c to the sums of a pixel, which are relative to the largest logit so far.

    ``own`` is the label's logit, or for soft labels ``Σ y_c (max - z_c)``; ``linear`` is Σ z_c, ``square`` and
    ``moment`` are the sums of the others' squared exponentials and of their exponentials times ``z_c - max``.
    """
    same = z == top  # -inf - -inf is NaN, although the two are equal
    distance = tl.where(same, 0.0, tl.abs(z - top))
    e = tl.exp(-distance)
    new = z > top
    if SOFT:
        by = tl.where(new, mass, y)
        finite = tl.where(distance > 3.4028235e38, 3.4028235e38, distance)
        own += tl.where(by != 0.0, by * finite, 0.0)
        mass += y
    else:
        own = tl.where(c == label, z, own)
    if KLD:
        linear += tl.where(c < C, z, 0.0)
    if SQUARE:
        square = tl.where(new, (square + 1.0) * e * e, square + e * e)
    if ENTROPY:
        grown = tl.where(new, e * (moment - (1.0 + rest) * distance), moment - e * distance)
        moment = tl.where(e > 0.0, grown, tl.where(new, 0.0, moment))
    rest = tl.where(new, (rest + 1.0) * e, rest + e)
    return tl.where(new, z, top), rest, own, mass, linear, square, moment


@jit
def _merge(
    top, rest, own, mass, linear, square, moment, lane,
    LANES: tl.constexpr, SOFT: tl.constexpr, KLD: tl.constexpr, SQUARE: tl.constexpr, ENTROPY: tl.constexpr,
):  # fmt: skip
    """Merge the results of ``_add`` over the lanes."""
    if LANES > 1:
        top, owns, distance = owner(top, lane, LANES)
        e = tl.exp(-distance)
        if SOFT:
            finite = tl.where(distance > 3.4028235e38, 3.4028235e38, distance)
            own += tl.where(mass != 0.0, mass * finite, 0.0)
            mass = add_up(mass, LANES)
        own = add_up(own, LANES)
        if KLD:
            linear = add_up(linear, LANES)
        if SQUARE:
            square = add_up(tl.where(owns, square, (square + 1.0) * e * e), LANES)
        if ENTROPY:
            grown = tl.where(e > 0.0, e * (moment - (1.0 + rest) * distance), 0.0)
            moment = add_up(tl.where(owns, moment, grown), LANES)
        rest = add_up(tl.where(owns, rest, (rest + 1.0) * e), LANES)
    return top, rest, own, mass, linear, square, moment


@jit
def _weights(
    pixel_weight, image_weight, class_weight, exponent, exponent_b, exponent_p, image, label, nll, valid, at, inside,
):  # fmt: skip
    """Factors of nll, of the regulariser and of the entropy; the class weight; which images are regularised."""
    on_all = tl.full(nll.shape, 1.0, tl.float32)
    if pixel_weight is not None:
        on_all = tl.load(pixel_weight + at, mask=inside, other=0.0).to(tl.float32)
    own = tl.full(nll.shape, 1.0, tl.float32)
    if class_weight is not None:
        own = tl.load(class_weight + tl.maximum(label, 0)).to(tl.float32)
    on_nll = on_all * own
    if exponent is not None:
        gamma = tl.load(exponent + image * exponent_b + at * exponent_p, mask=inside, other=0.0).to(tl.float32)
        on_nll *= tl.exp(-gamma * tl.where(nll > 1e4, 1e4, nll))  # 0 · inf is NaN
    on_reg = on_all
    regularised = valid
    if image_weight is not None:
        factor = tl.zeros_like(nll) + tl.load(image_weight + image).to(tl.float32)
        on_reg *= factor
        regularised = regularised & (factor != 0.0)
    return on_nll, on_reg, on_all, own, regularised


@jit
def forward_kernel(
    logits, target, pixel_weight, image_weight, class_weight, exponent, loss, largest, log_total, kept, partial,
    height, width, stride_b, stride_c, stride_h, stride_w, target_b, target_c, target_h, target_w,
    ignore_index, exponent_b, exponent_p, factor_nll, factor_reg, factor_rest,
    C: tl.constexpr, PIXELS: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
    SOFT: tl.constexpr, REGULARISER: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp and other values for the gradient, and the loss as a map or its sums over the program's pixels."""
    image, row, columns, at, inside = place(height, width, PIXELS, LANES)
    start = first(logits, image, row, columns, stride_b, stride_h, stride_w)
    goal = first(target, image, row, columns, target_b, target_h, target_w)
    KLD: tl.constexpr = REGULARISER == 1
    SQUARE: tl.constexpr = REGULARISER == 3
    ENTROPY: tl.constexpr = (REGULARISER == 2) or REST
    zero, lane = tl.zeros(inside.shape, tl.float32), lanes(PIXELS, LANES)
    top, _, rest = nothing_yet(zero)
    own, mass, linear, square, moment, y = zero, zero, zero, rest, zero, zero
    label, valid, wrong = tl.full(inside.shape, -1, tl.int32), inside, inside
    if not SOFT:
        label, valid, wrong = read_label(target, at, inside, ignore_index, C)
    for begin in range(0, C, CHUNK):
        for each in tl.static_range(0, CHUNK, LANES):
            c = begin + each + lane
            z = read_next(start, c, stride_c, inside, C, CHUNK)
            if SOFT:
                y = read_class(goal, c, target_c, inside & (c < C))
            top, rest, own, mass, linear, square, moment = _add(
                z, y, c, label, top, rest, own, mass, linear, square, moment, C, SOFT, KLD, SQUARE, ENTROPY
            )
    top, rest, own, mass, linear, square, moment = _merge(
        top, rest, own, mass, linear, square, moment, lane, LANES, SOFT, KLD, SQUARE, ENTROPY
    )
    rest = finish(top, rest)
    total = log1p(rest)
    if SOFT:
        valid = mass != 0.0
        nll = mass * total + own
    else:
        nll = tl.where(wrong, float("nan"), (top - own) + total)
    inside = inside & (lane == 0)
    valid = valid & inside
    tl.store(largest + at, top, mask=inside)
    tl.store(log_total + at, total, mask=inside)
    entropy = total - moment / (1.0 + rest)
    reg = tl.zeros_like(nll)
    if KLD:
        reg = total + (top - linear / C)
    if REGULARISER == 2:
        reg = entropy
    if SQUARE:
        reg = (1.0 + square) / ((1.0 + rest) * (1.0 + rest))
    if REGULARISER == 4:
        reg = -_expm1(-nll)
    if kept is not None:
        value = entropy
        if SQUARE:
            value = reg
            if REST:
                value = tl.where(valid, reg, entropy)
        tl.store(kept + at, value, mask=inside)
    on_nll, on_reg, on_rest, weight, regularised = _weights(
        pixel_weight, image_weight, class_weight, exponent, exponent_b, exponent_p, image, label, nll, valid, at, inside
    )
    regularised = regularised & inside
    others = inside & (valid == 0)
    # A part that is left out may be infinite.
    ce = tl.where(valid & (factor_nll != 0.0), nll * on_nll, 0.0)
    reg = tl.where(regularised, reg * on_reg, 0.0)
    rem = tl.zeros_like(nll)
    if REST:
        rem = tl.where(others, entropy * on_rest, 0.0)
    if loss is not None:
        tl.store(loss + at, factor_nll * ce + factor_reg * reg + factor_rest * rem, mask=inside)
    else:
        mine, programs = partial + tl.program_id(0), tl.num_programs(0)
        tl.store(mine, tl.sum(ce))
        tl.store(mine + programs, tl.sum(valid.to(tl.float32)))
        mine += 2 * programs  # and then only what there is
        if REGULARISER != 0:
            tl.store(mine, tl.sum(reg))
            mine += programs
        if image_weight is not None:
            tl.store(mine, tl.sum(regularised.to(tl.float32)))
            mine += programs
        if REST:
            tl.store(mine, tl.sum(rem))
            mine += programs
        if class_weight is not None:
            tl.store(mine, tl.sum(tl.where(valid, weight, 0.0)))


@jit
def _expm1(x):
    """exp(x) - 1 for x <= 0, accurate to a few roundings."""
    u = tl.exp(x)
    small = (u - 1.0) * (x / tl.log(u))
    return tl.where(u == 1.0, x, tl.where(u < 0.5, u - 1.0, small))


@jit
def _slope(
    z, y, c, label, top, total, value, slope, on_nll, on_reg, on_entropy,
    C: tl.constexpr, SOFT: tl.constexpr, REGULARISER: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Gradient of class c: p · slope - a · y - b / C."""
    log_p = (z - top) - total
    p = tl.exp(log_p)
    if (REGULARISER == 2) or REST:
        finite = tl.where(log_p < -1e4, -1e4, log_p)  # a maximum would also replace NaN
        slope -= on_entropy * (finite + value)
    if REGULARISER == 3:
        slope += 2.0 * on_reg * (p - value)
    gradient = p * slope
    if REGULARISER == 1:
        gradient -= on_reg / C
    if SOFT:
        return gradient - on_nll * y
    return gradient - tl.where(c == label, on_nll, 0.0)


@jit
def backward_kernel(
    grad, logits, target, pixel_weight, image_weight, class_weight, exponent, scales, largest, log_total, kept, result,
    height, width, stride_b, stride_c, stride_h, stride_w, target_b, target_c, target_h, target_w,
    result_b, result_c, result_h, result_w, ignore_index, exponent_b, exponent_p, grad_p,
    C: tl.constexpr, PIXELS: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
    SOFT: tl.constexpr, REGULARISER: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """The gradient of the logits, given that of the loss or of its map."""
    image, row, columns, at, inside = place(height, width, PIXELS, LANES)
    start = first(logits, image, row, columns, stride_b, stride_h, stride_w)
    goal = first(target, image, row, columns, target_b, target_h, target_w)
    out = first(result, image, row, columns, result_b, result_h, result_w)
    top = tl.load(largest + at, mask=inside, other=0.0)
    total = tl.load(log_total + at, mask=inside, other=0.0)
    label, valid, wrong = tl.full(top.shape, -1, tl.int32), inside, inside
    mass, lane = tl.full(top.shape, 1.0, tl.float32), lanes(PIXELS, LANES)
    if SOFT:
        mass = tl.zeros_like(top)
        for begin in range(0, C, LANES):
            mass += read_class(goal, begin + lane, target_c, inside & (begin + lane < C))
        mass = add_up(mass, LANES)
        valid = mass != 0.0
    else:
        label, valid, wrong = read_label(target, at, inside, ignore_index, C)
        mass = tl.where(wrong, float("nan"), mass)
    nll = tl.zeros_like(top)
    if (exponent is not None) or (REGULARISER == 4):
        nll = total - (read_class(start, tl.maximum(label, 0), stride_c, inside) - top)
    on_nll, on_reg, on_rest, _, regularised = _weights(
        pixel_weight, image_weight, class_weight, exponent, exponent_b, exponent_p, image, label, nll, valid, at, inside
    )
    arrived = tl.load(grad + at * grad_p, mask=inside, other=0.0).to(tl.float32)
    on_nll = tl.where(valid, arrived * tl.load(scales) * on_nll, 0.0)
    on_reg = tl.where(regularised, arrived * tl.load(scales + 1) * on_reg, 0.0)
    used = valid
    on_entropy = tl.zeros_like(top)
    if REGULARISER == 2:
        on_entropy = on_reg
    if REST:
        used = inside
        on_entropy += tl.where(valid, 0.0, arrived * tl.load(scales + 2) * on_rest)
    if REGULARISER == 4:
        on_nll += on_reg * tl.exp(-nll)
    slope = on_nll * mass
    if REGULARISER == 1:
        slope += on_reg
    value = tl.zeros_like(top)
    if kept is not None:
        value = tl.load(kept + at, mask=inside, other=0.0)
    y = tl.zeros_like(top)
    for begin in range(0, C, CHUNK):
        for each in tl.static_range(0, CHUNK, LANES):
            c = begin + each + lane
            z = read_next(start, c, stride_c, inside, C, CHUNK)
            if SOFT:
                y = read_class(goal, c, target_c, inside & (c < C))
            gradient = _slope(
                z, y, c, label, top, total, value, slope, on_nll, on_reg, on_entropy, C, SOFT, REGULARISER, REST
            )
            # 0 · NaN is NaN, so unused logits are masked to get a gradient of zero.
            gradient = tl.where(used, gradient, 0.0).to(result.dtype.element_ty)
            tl.store(out + tl.cast(c, tl.int64) * result_c, gradient, mask=inside & (c < C))
