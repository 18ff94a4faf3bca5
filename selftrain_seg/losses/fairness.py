"""Self-adaptive fairness, which keeps predictions from collapsing to a few classes (FreeMatch)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from selftrain_seg import _checks, ops

__all__ = ["fairness_loss"]


def fairness_loss(
    logits: Tensor,
    running_probs: Tensor,
    running_histogram: Tensor,
    *,
    mask: Tensor | None = None,
    loss_weight: float = 0.01,
) -> Tensor:
    """Compute the negative cross entropy between the running class distribution and that of the batch.

    ``loss_weight · Σ_c norm(p̃/h)_c · log norm(p̄_s/h_s)_c`` where p̃ and h are the running mean probability and
    histogram of predictions, p̄_s and h_s those of the student over the pixels in ``mask``, and norm divides by the sum
    over classes. The sign is as published: the cross entropy is maximised. No gradient flows through the count h_s.
    Differs from the published code for classes that are 0 in h or h_s: they are left out here, while the published code
    adds constants to avoid log 0; the gradients are the same.

    Args:
        logits: (B, C, H, W) of the student, any floating-point dtype and memory layout. The only argument that
            gets a gradient.
        running_probs: (C,) p̃.
        running_histogram: (C,) h, at least 0; counts or shares.
        mask: (B, H, W) bool, the pixels that contribute, in FreeMatch the selected ones; None means all.
        loss_weight: factor of the loss, at least 0. FreeMatch: 0.01.

    Returns:
        Scalar in float32 (float64 for float64 logits). Without a pixel the loss and its gradients are exactly 0.

    State / distributed: none; the means of the student are over the pixels of this process.

    Raises:
        TypeError: ``logits`` is not floating point, ``mask`` is not bool, ``loss_weight`` is not a number, or a running
            value is not a tensor.
        ValueError: a shape or device does not match ``logits``, or ``loss_weight`` is negative.

    References:
        FreeMatch (Wang et al., Self-adaptive Thresholding for Semi-supervised Learning, ICLR 2023,
        arXiv 2205.07246).

    Example:
        >>> import torch
        >>> logits = torch.tensor([[3.0, 1.0], [1.0, 3.0]]).log().reshape(1, 2, 1, 2)  # p = (3/4, 1/4), (1/4, 3/4)
        >>> fairness_loss(logits, torch.tensor([0.6, 0.4]), torch.tensor([0.5, 0.5]), loss_weight=1.0)  # log 1/2
        tensor(-0.6931)
    """
    _checks.check_logits(logits)
    _checks.check_class_values(running_probs, logits, "running_probs")
    _checks.check_class_values(running_histogram, logits, "running_histogram")
    if mask is not None:
        _checks.check_map(mask, logits, "mask")
        if mask.dtype != torch.bool:
            raise TypeError(f"`mask`: expected dtype torch.bool, got {mask.dtype}")
    _checks.check_real(loss_weight, "loss_weight", 0.0, math.inf)
    return ops.fairness_loss(logits, running_probs, running_histogram, mask=mask, factor=loss_weight)
