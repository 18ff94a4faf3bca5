"""Functions that the kernels share: the pixels of a program, and the loop over their classes.

A program processes a run of pixels of one row. The loop keeps the largest logit and the sum of the exponentials of the
others. A new maximum adds the old one to the others, ``rest = (rest + 1) · e``; otherwise ``rest += e``, with
``e = exp(-|z - max|)``. This takes one exponential per class and has no cancellation. Classes are read in unrolled
chunks. Rows, columns and addresses have 64 bits.

If the classes of a pixel are adjacent in memory (channels_last), neighbouring threads that read the same class of
neighbouring pixels would each fetch another sector. Then ``LANES`` neighbouring threads share a pixel: lane l processes
the classes l, l + LANES, ..., and the lanes are merged after the loop. The results of the pixel are then the same in
all lanes, and the first one stores them.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,import-not-found,no-redef"

from __future__ import annotations

from typing import Any

try:
    import triton.language as tl
    from triton import jit
except ImportError:  # without Triton the file can be imported, but nothing in it is called
    tl: Any = None

    def jit(function: Any) -> Any:
        return function


__all__ = ["jit", "tl"]


@jit
def place(height, width, PIXELS: tl.constexpr, LANES: tl.constexpr = 1):
    """Image, row, columns and index in a (B, H, W) map of the program's pixels, and which of them are inside."""
    runs = tl.cdiv(width, PIXELS)
    line = (tl.program_id(0) // runs).to(tl.int64)
    columns = (tl.program_id(0) % runs).to(tl.int64) * PIXELS + tl.arange(0, PIXELS * LANES) // LANES
    return line // height, line % height, columns, line * width + columns, columns < width


@jit
def lanes(PIXELS: tl.constexpr, LANES: tl.constexpr):
    """The lane of each thread; 0 if there is only one lane."""
    return tl.arange(0, PIXELS * LANES) % LANES


@jit
def add_up(values, LANES: tl.constexpr):
    """Sum over the lanes, in each lane."""
    if LANES > 1:
        pixels: tl.constexpr = values.shape[0] // LANES
        total = tl.sum(tl.reshape(values, (pixels, LANES)), axis=1, keep_dims=True)
        values = tl.reshape(tl.broadcast_to(total, (pixels, LANES)), (pixels * LANES,))
    return values


@jit
def largest_of(values, LANES: tl.constexpr):
    """Maximum over the lanes, in each lane."""
    if LANES > 1:
        pixels: tl.constexpr = values.shape[0] // LANES
        largest = tl.max(tl.reshape(values, (pixels, LANES)), axis=1, keep_dims=True)
        values = tl.reshape(tl.broadcast_to(largest, (pixels, LANES)), (pixels * LANES,))
    return values


@jit
def owner(top, lane, LANES: tl.constexpr):
    """The largest logit of all lanes, the first lane that has it, and the difference of each lane's logit to it."""
    largest = largest_of(top, LANES)
    same = top == largest
    first_lane = -largest_of(tl.where(same, -lane, -LANES), LANES)
    return largest, lane == first_lane, tl.where(same, 0.0, tl.abs(top - largest))


@jit
def first(tensor, image, row, columns, stride_b, stride_h, stride_w):
    """Addresses of the first class of the pixels in a (B, C, H, W) tensor."""
    return tensor + image * stride_b + row * stride_h + columns * stride_w


@jit
def read_class(start, c, stride_c, inside):
    """The logits of class c, float32; 0 outside."""
    return tl.load(start + tl.cast(c, tl.int64) * stride_c, mask=inside, other=0.0).to(tl.float32)


@jit
def read_next(start, c, stride_c, inside, C: tl.constexpr, CHUNK: tl.constexpr):
    """The logits of class c; -inf, which has no effect, for classes that the last chunk has too many."""
    if C % CHUNK == 0:
        return read_class(start, c, stride_c, inside)
    return tl.where(c < C, read_class(start, c, stride_c, inside & (c < C)), float("-inf"))


@jit
def read_label(target, at, inside, ignore_index, C: tl.constexpr):
    """The label, -1 if there is none; which pixels have one; which labels are out of range."""
    y = tl.load(target + at, mask=inside, other=0).to(tl.int64)
    known = (y >= 0) & (y < C)
    valid = y != ignore_index
    return tl.where(known & valid, y, -1).to(tl.int32), valid, valid & (known == 0)


@jit
def nothing_yet(zero):
    """Initial largest logit, its class and the sum of the others; the first class sets that sum to 0."""
    return zero - float("inf"), zero.to(tl.int32), zero - 1.0


@jit
def step(z, c, top, label, rest):
    """Add class c to the largest logit so far, its class (the first of ties) and the sum of the others."""
    # -inf - -inf is NaN, although the two are equal.
    e = tl.where(z == top, 1.0, tl.exp(-tl.abs(z - top)))
    new = z > top
    return tl.where(new, z, top), tl.where(new, c, label), tl.where(new, (rest + 1.0) * e, rest + e)


@jit
def merge(top, label, rest, LANES: tl.constexpr, C: tl.constexpr):
    """Merge the results of ``step`` over the lanes."""
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
    """The sum of the others; NaN if the largest logit is infinite or any is NaN."""
    return tl.where(tl.abs(top) < float("inf"), rest, float("nan"))


@jit
def read_pixels(start, stride_c, inside, lane, C: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr):
    """Loop over the classes once; return the largest logit, its class and the sum of the others' exponentials."""
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
    """-log(rest), the log-odds. For subnormal numbers, which a GPU's logarithm treats as 0, a value above all bins."""
    subnormal = (rest > 0.0) & (rest < 1.1754944e-38)
    return tl.where(subnormal, 87.5, -tl.log(rest))


@jit
def log1p(x):
    """log(1 + x) for x >= -1, accurate even if 1 + x rounds to 1."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / (u - 1.0)))


@jit
def double(bits):
    """Convert the bits of a float64 from the host; Triton passes plain numbers as float32."""
    return tl.cast(bits, tl.int64).to(tl.float64, bitcast=True)
