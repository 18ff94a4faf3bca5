"""Symmetric cross entropy: robust to wrong labels, so often used with pseudo-labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.losses._core import pixel_maps
from selftrain_seg.losses._module import LossModule
from selftrain_seg.losses._reduce import REDUCTIONS, Term, reduce, weigh
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["SymmetricLoss", "symmetric_loss"]


def symmetric_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 0.1,
    beta: float = 1.0,
    log_zero: float = -4.0,
    pixel_weight: Tensor | None = None,
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
        ignore_index: label of the pixels that take part in nothing.
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
    _checks.check_logits(logits)
    _checks.check_labels(labels, logits, ignore_index)
    _check_settings(alpha, beta, log_zero, reduction)
    if pixel_weight is not None:
        _checks.check_map(pixel_weight, logits, "pixel_weight")
    valid, nll = pixel_maps(logits, labels, "nll", ignore_index=ignore_index)
    values = alpha * nll + beta * log_zero * torch.expm1(-nll)  # 1 - p_y without the cancellation
    return reduce([Term(1.0, weigh(values, pixel_weight, valid), valid.sum())], reduction)


def _check_settings(alpha: float, beta: float, log_zero: float, reduction: str) -> None:
    _checks.check_real(alpha, "alpha", 0.0, math.inf)
    _checks.check_real(beta, "beta", 0.0, math.inf)
    _checks.check_real(log_zero, "log_zero", -math.inf, 0.0)
    _checks.check_choice(reduction, "reduction", REDUCTIONS)


class SymmetricLoss(LossModule):
    """``symmetric_loss`` with its settings kept: ``SymmetricLoss(alpha=0.1)(logits, labels)``."""

    def __init__(
        self,
        *,
        alpha: float = 0.1,
        beta: float = 1.0,
        log_zero: float = -4.0,
        ignore_index: int = IGNORE_INDEX,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        _check_settings(alpha, beta, log_zero, reduction)
        self.alpha = alpha
        self.beta = beta
        self.log_zero = log_zero
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, logits: Tensor, labels: Tensor, *, pixel_weight: Tensor | None = None) -> Tensor:
        """Call ``symmetric_loss`` with the settings of this module."""
        return symmetric_loss(
            logits,
            labels,
            alpha=self.alpha,
            beta=self.beta,
            log_zero=self.log_zero,
            pixel_weight=pixel_weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )
