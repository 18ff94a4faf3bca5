"""Symmetric cross entropy: robust to wrong labels, so often used with pseudo-labels."""

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
    """Compute cross entropy plus reverse cross entropy, in which prediction and label swap places.

    ``(1/N) Σ [α · -log p_y + β · -Σ_c p_c log y_c]`` over the N valid pixels, where the one-hot label's log 0 is
    replaced by A, so the reverse part is ``-A (1 - p_y)``. Matches the symmetric cross entropy of the paper.

    Args:
        logits: (B, C, H, W), any floating-point dtype and memory layout. The only argument gradients are sure
            to reach; ``pixel_weight`` gets one if it requires it.
        labels: (B, H, W) integers in [0, C) or ``ignore_index``.
        alpha: factor of cross entropy, not negative. The paper: 0.1 on CIFAR-10.
        beta: factor of reverse cross entropy, not negative. The paper: 1.
        log_zero: A, not positive. The paper: -4.
        pixel_weight: (B, H, W) factor of both parts; None is 1. Does not enter N.
        normalize: "labelled", N as above, or "all", B·H·W.
        ignore_index: label of the pixels that take part in nothing; outside [0, C).
        reduction: "mean" as above; "sum" without the division; "none" for the map whose sum that is.

    Returns:
        Scalar, or (B, H, W) for "none", in float32 (float64 for float64 logits). Without any valid pixel exactly
        0 with gradients of exactly 0.

    Raises:
        TypeError: ``logits`` is not floating point, ``labels`` not integer, a factor no number, or
            ``pixel_weight`` no tensor.
        ValueError: a shape or device does not fit ``logits``, a factor is out of range, or ``reduction`` is
            unknown. Labels outside [0, C), only inside ``value_checks()``.

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
