"""Kernels for the maps that the losses are made of, and for their gradient.

An argument that is None costs nothing: what only it needs is left out when the kernel is compiled.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-untyped,import-not-found"

from __future__ import annotations

from selftrain_seg.kernels._read import jit, place, read_tile, tl, write_tile


@jit
def _log_softmax(
    logits, image, row, first, number, stride_b, stride_c, stride_h, stride_w,
    C: tl.constexpr, TILE_C: tl.constexpr, PIXELS: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    """Log p and p (TILE_C, PIXELS): -inf and 0 for classes from C on; all NaN where a logit is, or the largest inf."""
    z = read_tile(
        logits, float("-inf"), image, row, first, number, stride_b, stride_c, stride_h, stride_w,
        C, TILE_C, PIXELS, DENSE,
    )  # fmt: skip
    gaps = z - tl.max(z, axis=0)[None, :]
    powers = tl.exp(gaps)
    total = tl.sum(powers, axis=0)
    return gaps - tl.log(total)[None, :], powers * (1.0 / total)[None, :]


@jit
def _finite(log_p, lowest):
    """Values below the lowest replaced by it; not by a maximum, which would replace NaN, too."""
    return tl.where(log_p < lowest, lowest, log_p)


@jit
def _read_hard(target, at, inside, ignore_index, C: tl.constexpr):
    """Labels, -1 where out of range; which pixels have one; and which of them are out of range."""
    y = tl.load(target + at, mask=inside, other=0).to(tl.int64)
    known = (y >= 0) & (y < C)
    return tl.where(known, y, -1).to(tl.int32), y != ignore_index, (y != ignore_index) & ~known


@jit
def maps_kernel(
    logits, target, valid, nll, kld, entropy, square, ignored_entropy,
    height, width, stride_b, stride_c, stride_h, stride_w, target_b, target_c, target_h, target_w, ignore_index,
    C: tl.constexpr, TILE_C: tl.constexpr, PIXELS: tl.constexpr, DENSE: tl.constexpr,
    SOFT: tl.constexpr,
):  # fmt: skip
    image, row, first, number, at, inside = place(height, width, PIXELS)
    log_p, p = _log_softmax(
        logits, image, row, first, number, stride_b, stride_c, stride_h, stride_w, C, TILE_C, PIXELS, DENSE
    )
    classes = tl.arange(0, TILE_C)[:, None]
    if SOFT:
        y = read_tile(
            target, 0.0, image, row, first, number, target_b, target_c, target_h, target_w, C, TILE_C, PIXELS, DENSE
        )
        used = tl.sum(y, axis=0) != 0.0
        # A class masked out by its logit has log p = -inf; where its label is 0 that must add 0.
        cross = -tl.sum(_finite(log_p, -3.4028234663852886e38) * y, axis=0)
    else:
        y, used, wrong = _read_hard(target, at, inside, ignore_index, C)
        cross = -tl.sum(tl.where(classes == y[None, :], log_p, 0.0), axis=0)
        cross = tl.where(wrong, float("nan"), cross)
    tl.store(valid + at, used, mask=inside)
    if nll is not None:
        tl.store(nll + at, tl.where(used, cross, 0.0), mask=inside)
    if kld is not None:
        mean = tl.sum(tl.where(classes < C, log_p, 0.0), axis=0) * (-1.0 / C)
        tl.store(kld + at, tl.where(used, mean, 0.0), mask=inside)
    if square is not None:
        tl.store(square + at, tl.where(used, tl.sum(p * p, axis=0), 0.0), mask=inside)
    if (entropy is not None) or (ignored_entropy is not None):
        disorder = -tl.sum(p * _finite(log_p, -1e4), axis=0)
        if entropy is not None:
            tl.store(entropy + at, tl.where(used, disorder, 0.0), mask=inside)
        if ignored_entropy is not None:
            tl.store(ignored_entropy + at, tl.where(used, 0.0, disorder), mask=inside)


@jit
def gradient_kernel(
    logits, target, nll, kld, entropy, square, ignored_entropy, result,
    height, width, stride_b, stride_c, stride_h, stride_w, target_b, target_c, target_h, target_w,
    result_b, result_c, result_h, result_w, ignore_index, nll_step, kld_step, entropy_step, square_step, ignored_step,
    C: tl.constexpr, TILE_C: tl.constexpr, PIXELS: tl.constexpr, DENSE: tl.constexpr,
    SOFT: tl.constexpr,
):  # fmt: skip
    """Read the gradients of the maps, at ``step`` 0 if one value holds for all pixels, and write that of the logits.

    d nll = m p - y with m = Σ y, d kld = p - 1/C, d entropy = -p (log p + H), d square = 2 p (p - S).
    """
    image, row, first, number, at, inside = place(height, width, PIXELS)
    log_p, p = _log_softmax(
        logits, image, row, first, number, stride_b, stride_c, stride_h, stride_w, C, TILE_C, PIXELS, DENSE
    )
    classes = tl.arange(0, TILE_C)[:, None]
    if SOFT:
        y = read_tile(
            target, 0.0, image, row, first, number, target_b, target_c, target_h, target_w, C, TILE_C, PIXELS, DENSE
        )
        mass = tl.sum(y, axis=0)
        used = mass != 0.0
    else:
        label, used, wrong = _read_hard(target, at, inside, ignore_index, C)
        y = tl.where(classes == label[None, :], 1.0, 0.0)
        mass = tl.where(wrong, float("nan"), 1.0)
    used = used & inside
    counts = used
    factor = tl.zeros_like(p)  # of p
    added = tl.zeros_like(p)
    if nll is not None:
        grad = tl.load(nll + at * nll_step, mask=used, other=0.0)
        factor += (grad * mass)[None, :]
        added -= grad[None, :] * y
    if kld is not None:
        grad = tl.load(kld + at * kld_step, mask=used, other=0.0)
        factor += grad[None, :]
        added -= (grad / C)[None, :]
    if square is not None:
        grad = tl.load(square + at * square_step, mask=used, other=0.0)
        factor += (2.0 * grad)[None, :] * (p - tl.sum(p * p, axis=0)[None, :])
    if (entropy is not None) or (ignored_entropy is not None):
        grad = tl.zeros_like(mass)
        if entropy is not None:
            grad += tl.load(entropy + at * entropy_step, mask=used, other=0.0)
        if ignored_entropy is not None:
            counts = inside
            grad += tl.load(ignored_entropy + at * ignored_step, mask=inside & ~used, other=0.0)
        log_p = _finite(log_p, -1e4)
        factor -= grad[None, :] * (log_p - tl.sum(p * log_p, axis=0)[None, :])
    # 0 · NaN is NaN: logits that no map uses must not spoil a gradient of zero.
    gradient = tl.where(counts[None, :], p * factor + added, 0.0)
    write_tile(
        result, gradient, image, row, first, number, result_b, result_c, result_h, result_w, C, TILE_C, PIXELS, DENSE
    )
