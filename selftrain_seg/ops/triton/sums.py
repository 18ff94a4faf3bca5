"""Kernel that adds up the partial sums of a loss, and divides."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,import-not-found"

from __future__ import annotations

from selftrain_seg.ops.triton._walk import jit, tl


@jit
def _load(partial, row, column, programs):
    return tl.load(partial + column * programs + row, mask=row < programs, other=0.0).to(tl.float64)


@jit
def _share(total, size, factor):
    """The term of a sum in the loss, and the factor of the sum."""
    scale = factor / tl.where(size == 0.0, 1.0, size)
    return total * scale, scale.to(tl.float32)


@jit
def finish_kernel(
    scales, partial, divisor, loss, programs, pixels, factor_nll, factor_reg, factor_rest,
    NORMALIZE: tl.constexpr, REGULARISED: tl.constexpr, IMAGES: tl.constexpr, REST: tl.constexpr,
    CLASSES: tl.constexpr, MANY: tl.constexpr,
):  # fmt: skip
    """Add up and divide; one program. NORMALIZE is 0 for the sum, 1 labelled, 2 all, 3 weights; no loss for a map."""
    zero = tl.zeros((MANY,), tl.float64)
    nll, valid, reg, regularised, rest, own = zero, zero, zero, zero, zero, zero
    if loss is not None:
        for begin in range(0, programs, MANY):
            row = begin + tl.arange(0, MANY)
            nll += _load(partial, row, 0, programs)
            valid += _load(partial, row, 1, programs)
            if REGULARISED:
                reg += _load(partial, row, 2, programs)
            if IMAGES:
                regularised += _load(partial, row, 2 + REGULARISED, programs)
            if REST:
                rest += _load(partial, row, 2 + REGULARISED + IMAGES, programs)
            if CLASSES:
                own += _load(partial, row, 2 + REGULARISED + IMAGES + REST, programs)
    one = tl.full((), 1.0, tl.float64)
    size_nll, size_reg, size_rest = one, one, one
    if divisor is not None:
        size_nll = tl.load(divisor).to(tl.float64)
        size_reg, size_rest = size_nll, size_nll
    elif NORMALIZE == 2:
        size_nll = one * pixels
        size_reg, size_rest = size_nll, size_nll
    elif NORMALIZE != 0:
        size_nll = tl.sum(valid)
        size_reg, size_rest = size_nll, pixels - size_nll
        if IMAGES:
            size_reg = tl.sum(regularised)
        if CLASSES and NORMALIZE == 3:
            size_nll = tl.sum(own)
    nll_part, nll_scale = _share(tl.sum(nll), size_nll, factor_nll)
    reg_part, reg_scale = _share(tl.sum(reg), size_reg, factor_reg)
    rest_part, rest_scale = _share(tl.sum(rest), size_rest, factor_rest)
    if loss is not None:
        tl.store(loss, (nll_part + reg_part + rest_part).to(tl.float32))
    tl.store(scales, nll_scale)
    tl.store(scales + 1, reg_scale)
    tl.store(scales + 2, rest_scale)
