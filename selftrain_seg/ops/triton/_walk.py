"""What the kernels share: which pixels a program takes, and how it walks through their classes.

A program takes a run of pixels of one row. The largest logit and the sum of the others' exponentials are kept while
walking: at a new maximum the old one joins the others, ``rest = (rest + 1) · e``, else ``rest += e``, with
``e = exp(-|z - max|)``. One exponential a class, no cancellation. Classes come in chunks, each one unrolled. Rows,
columns and addresses are counted in 64 bits.

Where the classes of a pixel lie side by side (channels_last), neighbouring threads that read one class of neighbouring
pixels would each fetch a sector of their own. There ``LANES`` neighbours share a pixel: lane l walks through the
classes l, l + LANES, ..., and the lanes are merged after the walk. What belongs to the whole pixel is then the same in
all of its lanes; the first one stores it.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,import-not-found,no-redef"

from __future__ import annotations

from typing import Any

try:
    import triton.language as tl
    from triton import jit
except ImportError:  # then nothing here is ever called, but the file can be imported
    tl: Any = None

    def jit(function: Any) -> Any:
        return function


__all__ = [
    "add_up",
    "double",
    "finish",
    "first",
    "jit",
    "lanes",
    "largest_of",
    "log1p",
    "merge",
    "nothing_yet",
    "owner",
    "place",
    "read_class",
    "read_label",
    "read_next",
    "read_pixels",
    "score_of",
    "step",
    "tl",
]


@jit
def place(height, width, PIXELS: tl.constexpr, LANES: tl.constexpr = 1):
    """Image, row, columns, index in a (B, H, W) map of the program's pixels, and which of them are inside."""
    runs = tl.cdiv(width, PIXELS)
    line = (tl.program_id(0) // runs).to(tl.int64)
    columns = (tl.program_id(0) % runs).to(tl.int64) * PIXELS + tl.arange(0, PIXELS * LANES) // LANES
    return line // height, line % height, columns, line * width + columns, columns < width


@jit
def lanes(PIXELS: tl.constexpr, LANES: tl.constexpr):
    """The lane of each place, 0 for all if there is one."""
    return tl.arange(0, PIXELS * LANES) % LANES


@jit
def add_up(values, LANES: tl.constexpr):
    """Sum over the lanes, for each of them."""
    if LANES > 1:
        pixels: tl.constexpr = values.shape[0] // LANES
        total = tl.sum(tl.reshape(values, (pixels, LANES)), axis=1, keep_dims=True)
        values = tl.reshape(tl.broadcast_to(total, (pixels, LANES)), (pixels * LANES,))
    return values


@jit
def largest_of(values, LANES: tl.constexpr):
    """Maximum over the lanes, for each of them."""
    if LANES > 1:
        pixels: tl.constexpr = values.shape[0] // LANES
        largest = tl.max(tl.reshape(values, (pixels, LANES)), axis=1, keep_dims=True)
        values = tl.reshape(tl.broadcast_to(largest, (pixels, LANES)), (pixels * LANES,))
    return values


@jit
def owner(top, lane, LANES: tl.constexpr):
    """The largest logit of all lanes, the first lane that has it, and how far below it each lane's own is."""
    largest = largest_of(top, LANES)
    same = top == largest
    first_lane = -largest_of(tl.where(same, -lane, -LANES), LANES)
    return largest, lane == first_lane, tl.where(same, 0.0, tl.abs(top - largest))


@jit
def first(tensor, image, row, columns, stride_b, stride_h, stride_w):
    """Addresses of the pixels' first class in a (B, C, H, W) tensor."""
    return tensor + image * stride_b + row * stride_h + columns * stride_w


@jit
def read_class(start, c, stride_c, inside):
    """The logits of class c, float32; 0 outside."""
    return tl.load(start + tl.cast(c, tl.int64) * stride_c, mask=inside, other=0.0).to(tl.float32)


@jit
def read_next(start, c, stride_c, inside, C: tl.constexpr, CHUNK: tl.constexpr):
    """The logits of class c; -inf, which changes nothing, for what a last chunk has too many."""
    if C % CHUNK == 0:
        return read_class(start, c, stride_c, inside)
    return tl.where(c < C, read_class(start, c, stride_c, inside & (c < C)), float("-inf"))


@jit
def read_label(target, at, inside, ignore_index, C: tl.constexpr):
    """The label, -1 where there is none; which pixels have one; which labels are out of range."""
    y = tl.load(target + at, mask=inside, other=0).to(tl.int64)
    known = (y >= 0) & (y < C)
    valid = y != ignore_index
    return tl.where(known & valid, y, -1).to(tl.int32), valid, valid & (known == 0)


@jit
def nothing_yet(zero):
    """Largest logit, its class and the sum of the others before the first class, which makes that sum 0."""
    return zero - float("inf"), zero.to(tl.int32), zero - 1.0


@jit
def step(z, c, top, label, rest):
    """Add class c to the largest logit so far, its class (the first of equals) and the sum of the others."""
    # -inf less -inf is NaN, and yet the two are equal.
    e = tl.where(z == top, 1.0, tl.exp(-tl.abs(z - top)))
    new = z > top
    return tl.where(new, z, top), tl.where(new, c, label), tl.where(new, (rest + 1.0) * e, rest + e)


@jit
def merge(top, label, rest, LANES: tl.constexpr, C: tl.constexpr):
    """What ``step`` gives for all classes from what it gave in each lane."""
    if LANES > 1:
        largest = largest_of(top, LANES)
        same = top == largest
        named = -largest_of(tl.where(same, -label, -C), LANES)
        others = (rest + 1.0) * tl.exp(tl.where(same, 0.0, -tl.abs(top - largest)))
        rest = add_up(tl.where(same & (label == named), rest, others), LANES)
        top, label = largest, named
    return top, label, rest


@jit
def finish(top, rest):
    """The sum of the others; NaN where the largest logit is NaN or infinite, as it is already where another is NaN."""
    return tl.where(tl.abs(top) < float("inf"), rest, float("nan"))


@jit
def read_pixels(start, stride_c, inside, lane, C: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr):
    """Walk through the classes once: largest logit, its class, sum of the others' exponentials."""
    top, label, rest = nothing_yet(tl.zeros(inside.shape, tl.float32))
    for begin in range(0, C, CHUNK):
        for each in tl.static_range(0, CHUNK, LANES):
            c = begin + each + lane
            z = read_next(start, c, stride_c, inside, C, CHUNK)
            top, label, rest = step(z, c, top, label, rest)
    top, label, rest = merge(top, label, rest, LANES, C)
    return top, label, finish(top, rest)


@jit
def score_of(rest):
    """-log(rest), the log-odds. Of subnormal numbers, which a GPU's logarithm takes for 0, a value above all bins."""
    subnormal = (rest > 0.0) & (rest < 1.1754944e-38)
    return tl.where(subnormal, 87.5, -tl.log(rest))


@jit
def log1p(x):
    """log(1 + x) for x >= -1, to a few roundings also where 1 + x rounds to 1."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / (u - 1.0)))


@jit
def double(bits):
    """The float64 of which a number from the host is the bits: a plain number would come as a float32."""
    return tl.cast(bits, tl.int64).to(tl.float64, bitcast=True)
