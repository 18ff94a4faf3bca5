"""Forward kernel of the mutual loss; ``sums.finish_kernel`` adds up, and the gradient is that of the weighted loss."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,import-not-found"

from __future__ import annotations

from selftrain_seg.ops.triton._walk import (
    add_up,
    finish,
    first,
    jit,
    lanes,
    log1p,
    merge,
    nothing_yet,
    place,
    read_label,
    read_next,
    step,
    tl,
)


@jit
def mutual_forward_kernel(
    logits, target, confidence, is_pseudo, chosen, weight, loss, largest, log_total, partial,
    height, width, stride_b, stride_c, stride_h, stride_w, ignore_index, gamma_agree, gamma_disagree,
    C: tl.constexpr, PIXELS: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr,
    FLIP: tl.constexpr, SLACK: tl.constexpr,
):  # fmt: skip
    """Labels to learn, their weights and other values for the gradient; the loss as a map or its sums."""
    image, row, columns, at, inside = place(height, width, PIXELS, LANES)
    start = first(logits, image, row, columns, stride_b, stride_h, stride_w)
    label, valid, wrong = read_label(target, at, inside, ignore_index, C)
    lane, own = lanes(PIXELS, LANES), tl.zeros(inside.shape, tl.float32)
    top, best, rest = nothing_yet(own)
    for begin in range(0, C, CHUNK):
        for each in tl.static_range(0, CHUNK, LANES):
            c = begin + each + lane
            z = read_next(start, c, stride_c, inside, C, CHUNK)
            own = tl.where(c == label, z, own)
            top, best, rest = step(z, c, top, best, rest)
    top, best, rest = merge(top, best, rest, LANES, C)
    own, rest, mine = add_up(own, LANES), finish(top, rest), inside & (lane == 0)
    total = log1p(rest)
    pseudo = valid
    if is_pseudo is not None:
        pseudo = inside & (tl.load(is_pseudo + image) != 0)
    agree = best == label
    other = tl.load(confidence + at, mask=inside, other=0.0).to(tl.float32)
    surer = pseudo & (agree == 0) & (1.0 / (1.0 + rest) - other > SLACK)  # SLACK excludes rounding errors
    factor = tl.where(surer, 0.0, 1.0)
    if FLIP:
        doubt = tl.where(other < 1.0, 1.0 - other, 0.0)
        flipped = tl.where(gamma_disagree == 0.0, 1.0, tl.exp(gamma_disagree * tl.log(doubt)))
        factor = tl.where(surer, flipped, 1.0)
        own = tl.where(surer, top, own)
        label = tl.where(surer & valid, best, label)
        wrong = wrong & (surer == 0)
    nll = tl.where(wrong, float("nan"), (top - own) + total)
    exponent = tl.where(pseudo & (surer == 0), tl.where(agree, gamma_agree, gamma_disagree), 0.0)
    factor *= tl.exp(-exponent * tl.where(nll > 1e4, 1e4, nll))
    valid = valid & mine
    none = tl.where(wrong, tl.where(ignore_index == C, C + 1, C), ignore_index)  # stays out of range
    tl.store(chosen + at, tl.where(label < 0, none, label).to(tl.int64), mask=mine)
    tl.store(weight + at, factor, mask=mine)
    tl.store(largest + at, top, mask=mine)
    tl.store(log_total + at, total, mask=mine)
    value = tl.where(valid, nll * factor, 0.0)
    if loss is not None:
        tl.store(loss + at, value, mask=mine)
    else:
        place_of = partial + tl.program_id(0)
        tl.store(place_of, tl.sum(value))
        tl.store(place_of + tl.num_programs(0), tl.sum(valid.to(tl.float32)))
