"""Symmetric cross entropy, which is robust to noisy labels."""

from __future__ import annotations

import math

from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg.losses._arguments import check_target, divide_by
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["symmetric_loss"]


def symmetric_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 0.1,
    beta: float = 1.0,
    log_zero: float = -4.0,
    pixel_weight: Tensor | None = None,
    normalize: str = "labelled",
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> Tensor:
    """Compute cross entropy plus reverse cross entropy, which swaps prediction and label.

    ``(1/N) Σ [α · -log p_y + β · -Σ_c p_c log y_c]`` over the N labelled pixels. log 0 of the one-hot label y is
    replaced by A, so the reverse term is ``-A (1 - p_y)``. Matches the paper.

    Args:
        logits: (B, C, H, W), any floating-point dtype and memory layout. Gradients flow to it, and to ``pixel_weight``
            if it requires a gradient.
        labels: (B, H, W) integers in [0, C) or ``ignore_index``.
        alpha: factor of cross entropy, at least 0. The paper: 0.1 on CIFAR-10.
        beta: factor of reverse cross entropy, at least 0. The paper: 1.
        log_zero: A, at most 0. The paper: -4.
        pixel_weight: (B, H, W) factor of both terms; None is 1. It does not change N.
        normalize: divisor, "labelled" for N as above, or "all" for B·H·W.
        ignore_index: label of pixels that do not contribute; outside [0, C).
        reduction: "mean" as above; "sum" does not divide; "none" returns the map that "sum" adds up.

    Returns:
        Scalar, or (B, H, W) for "none", in float32 (float64 for float64 logits). Without a labelled pixel the loss and
        its gradients are exactly 0.

    Raises:
        TypeError: ``logits`` is not floating point, ``labels`` is not integer, a factor is not a number, or
            ``pixel_weight`` is not a tensor.
        ValueError: a shape or device does not match ``logits``, a factor is out of range, or ``normalize`` or
            ``reduction`` is unknown. Inside ``value_checks()``: labels outside [0, C).

    References:
        Wang et al., Symmetric Cross Entropy for Robust Learning with Noisy Labels, ICCV 2019, arXiv 1908.06112.

    Example:
        >>> import torch
        >>> logits = torch.tensor([3.0, 1.0]).log().reshape(1, 2, 1, 1)  # p = (3/4, 1/4)
        >>> symmetric_loss(logits, torch.tensor([[[0]]]), alpha=1.0)  # ln 4/3 + 4 · 1/4
        tensor(1.2877)
    """
    check_target(logits, labels, ignore_index, pixel_weight, soft=False)
    _checks.check_real(alpha, "alpha", 0.0, math.inf)
    _checks.check_real(beta, "beta", 0.0, math.inf)
    _checks.check_real(log_zero, "log_zero", -math.inf, 0.0)
    return ops.weighted_loss(
        logits,
        labels,
        regulariser="reverse",
        factors=(alpha, -beta * log_zero, 0.0),
        pixel_weight=pixel_weight,
        normalize=divide_by(normalize, reduction),
        ignore_index=ignore_index,
    )
