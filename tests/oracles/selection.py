"""Confidence, thresholds and selection written from the formulas, in NumPy loops over pixels and float64."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def pixels(logits: np.ndarray):
    """Yield (b, i, j, z) for every pixel of (B, C, H, W)."""
    batch, _, height, width = logits.shape
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                yield b, i, j, logits[b, :, i, j].astype(np.float64)


def without(logits: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The logits of a batch in which the pixels that are not valid do not exist: all oracles skip NaN."""
    out = logits.astype(np.float64, copy=True)
    for b, i, j, _ in pixels(logits):
        if not valid[b, i, j]:
            out[b, :, i, j] = np.nan
    return out


def usable(z: np.ndarray) -> bool:
    return not np.isnan(z).any() and math.isfinite(z.max())


def scaled(z: np.ndarray, prior: np.ndarray | None, i: int, j: int) -> np.ndarray:
    return softmax(z) * (1.0 if prior is None else prior[:, i, j])


def confidence(logits: np.ndarray, prior: np.ndarray | None = None):
    """(labels, probabilities) of the winning class; probability 0 where a pixel is unusable."""
    shape = (logits.shape[0], *logits.shape[2:])
    labels, values = np.zeros(shape, np.int64), np.zeros(shape)
    for b, i, j, z in pixels(logits):
        if usable(z):
            p = scaled(z, prior, i, j)
            labels[b, i, j], values[b, i, j] = p.argmax(), p.max()
    return labels, values


def pools(logits: np.ndarray, *, pool: str, stride: int, prior: np.ndarray | None, pooled: bool) -> list[list[float]]:
    num_classes = logits.shape[1]
    out: list[list[float]] = [[] for _ in range(1 if pooled else num_classes)]
    for _, i, j, z in pixels(logits):
        if i % stride or j % stride or not usable(z):
            continue
        p = scaled(z, prior, i, j)
        for c in [int(p.argmax())] if pool == "predicted" else range(num_classes):
            out[0 if pooled else c].append(float(p[c]))
    return out


def kc(
    logits: np.ndarray,
    portion: float | np.ndarray,
    *,
    pool: str = "predicted",
    rank: str = "last_in",
    small: str | None = None,
    stride: int = 1,
    prior: np.ndarray | None = None,
    pooled: bool = False,
) -> np.ndarray:
    small = small or ("none" if rank == "last_in" else "all")
    nothing = math.inf if prior is not None else 1.0
    thresholds = []
    for c, values in enumerate(pools(logits, pool=pool, stride=stride, prior=prior, pooled=pooled)):
        share = portion if np.ndim(portion) == 0 else portion[c]
        taken = math.floor(len(values) * Fraction(str(share)))  # the decimal that was written
        if taken == 0:
            thresholds.append(nothing if small == "none" else 0.0)
            continue
        ordered = sorted(values, reverse=True)
        index = taken - 1 if rank == "last_in" else min(taken, len(values) - 1)
        thresholds.append(ordered[index])
    if pooled:
        thresholds = thresholds * logits.shape[1]
    return np.array(thresholds)


def hard(logits, kc, prior=None, ignore_index=255):
    labels = np.full((logits.shape[0], *logits.shape[2:]), ignore_index, np.int64)
    for b, i, j, z in pixels(logits):
        if usable(z):
            p = scaled(z, prior, i, j)
            if p.max() >= kc[p.argmax()]:
                labels[b, i, j] = p.argmax()
    return labels


def reweighted(logits, kc, prior=None, ignore_index=255):
    labels = np.full((logits.shape[0], *logits.shape[2:]), ignore_index, np.int64)
    for b, i, j, z in pixels(logits):
        if usable(z):
            ratio = scaled(z, prior, i, j) / kc
            if ratio.max() >= 1:
                labels[b, i, j] = ratio.argmax()
    return labels


def soft(logits, kc, alpha, prior=None):
    """Soft labels, selected by comparing the two regularised costs literally.

    CRST's label step with entropy regulariser: cost(y) = -Σ y_c log(p_c / kc_c) + α Σ y_c log y_c for a distribution
    y, and cost(0) = 0 for the zero vector; the minimiser over distributions is y ∝ (p / kc)^(1/α).
    """
    out = np.zeros(logits.shape)
    for b, i, j, z in pixels(logits):
        if not usable(z):
            continue
        ratio = scaled(z, prior, i, j) / kc
        power = ratio ** (1 / alpha)
        y = power / power.sum()
        nonzero = y > 0
        cost = -(y[nonzero] * np.log(ratio[nonzero])).sum() + alpha * (y[nonzero] * np.log(y[nonzero])).sum()
        if cost < 0:
            out[b, :, i, j] = y
    return out
