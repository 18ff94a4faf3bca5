"""What the kernels share: which pixels a program takes, and how it reads their classes.

A program takes a run of pixels of one row and all their classes: one tile, read once, held in registers. So maximum
and differences are those of the plain path, and only the order of a sum and the last bits of ``exp`` and ``log`` can
differ from it. Rows and columns are counted in 64 bits, and all addresses with them.
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


__all__ = ["jit", "log1p", "place", "read_scores", "read_tile", "tl", "write_tile"]


@jit
def place(height, width, PIXELS: tl.constexpr):
    """Image, row, first column and number of the program's pixels, their index in a (B, H, W) map, which are inside."""
    runs = tl.cdiv(width, PIXELS)
    line = (tl.program_id(0) // runs).to(tl.int64)
    first = (tl.program_id(0) % runs).to(tl.int64) * PIXELS
    number = tl.minimum(width - first, PIXELS)
    pixels = tl.arange(0, PIXELS)
    return line // height, line % height, first, number, line * width + first + pixels, pixels < number


@jit
def read_tile(
    tensor, other, image, row, first, number, stride_b, stride_c, stride_h, stride_w,
    C: tl.constexpr, TILE_C: tl.constexpr, PIXELS: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    """Read (TILE_C, PIXELS) of a (B, C, H, W) tensor as float32, ``other`` outside.

    DENSE says that a pixel's classes follow each other and the next pixel's follow them, as in channels_last. Then
    the memory is read from end to end and sorted on the chip, so that a thread gets all classes of a pixel.
    """
    start = tensor + image * stride_b + row * stride_h + first * stride_w
    pixels = tl.arange(0, PIXELS)[None, :]
    classes = tl.arange(0, TILE_C)[:, None]
    real = (classes < C) & (pixels < number)
    if DENSE:
        flat = tl.arange(0, TILE_C * PIXELS)
        values = tl.load(start + flat, mask=flat < number * C, other=other).to(tl.float32)
        values = tl.gather(values, flat % PIXELS * C + tl.minimum(flat // PIXELS, C - 1), 0)
        return tl.where(real, tl.reshape(values, (TILE_C, PIXELS)), other)
    at = start + (classes.to(tl.int64) * stride_c + pixels.to(tl.int64) * stride_w)
    return tl.load(at, mask=real, other=other).to(tl.float32)


@jit
def write_tile(
    tensor, values, image, row, first, number, stride_b, stride_c, stride_h, stride_w,
    C: tl.constexpr, TILE_C: tl.constexpr, PIXELS: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    """Write what ``read_tile`` would read."""
    start = tensor + image * stride_b + row * stride_h + first * stride_w
    values = values.to(tensor.dtype.element_ty)
    if DENSE:
        flat = tl.arange(0, TILE_C * PIXELS)
        source = flat % C * PIXELS + tl.minimum(flat // C, PIXELS - 1)
        values = tl.gather(tl.reshape(values, (TILE_C * PIXELS,)), source, 0)
        tl.store(start + flat, values, mask=flat < number * C)
    else:
        pixels = tl.arange(0, PIXELS)[None, :]
        classes = tl.arange(0, TILE_C)[:, None]
        at = start + (classes.to(tl.int64) * stride_c + pixels.to(tl.int64) * stride_w)
        tl.store(at, values, mask=(classes < C) & (pixels < number))


@jit
def read_scores(
    logits, image, row, first, number, stride_b, stride_c, stride_h, stride_w,
    C: tl.constexpr, TILE_C: tl.constexpr, PIXELS: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    """Differences to the largest logit (TILE_C, PIXELS), label, and the sum of the others' exponentials."""
    z = read_tile(
        logits, float("-inf"), image, row, first, number, stride_b, stride_c, stride_h, stride_w,
        C, TILE_C, PIXELS, DENSE,
    )  # fmt: skip
    top = tl.max(z, axis=0)
    classes = tl.arange(0, TILE_C)[:, None]
    label = tl.min(tl.where(z == top[None, :], classes, C - 1), axis=0)  # the first of equals
    gaps = z - top[None, :]
    rest = tl.sum(tl.where(classes == label[None, :], 0.0, tl.exp(gaps)), axis=0)
    # A NaN among the others is in the sum already; a largest logit that is NaN or infinite says nothing either.
    return gaps, label, tl.where(tl.abs(top) < float("inf"), rest, float("nan"))


@jit
def log1p(x):
    """log(1 + x) for x >= 0, to a few roundings also where 1 + x rounds to 1."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / (u - 1.0)))
