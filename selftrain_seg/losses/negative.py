"""Negative learning: lower the scores of classes that are improbable for the teacher (DT-ST)."""

from __future__ import annotations

import math

from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg.losses._arguments import REDUCTIONS

__all__ = ["negative_loss"]


def negative_loss(
    logits: Tensor,
    teacher_probs: Tensor,
    *,
    loss_weight: float = 0.5,
    pixel_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Compute binary cross entropy against 0 for the classes whose teacher probability is at most chance.

    ``loss_weight · (1/K) Σ_{(pixel, class): t_c ≤ 1/C} log(1 + exp(z_c))``, where K counts these (pixel, class) pairs,
    regardless of their weights, and ``z_c`` is used as a binary logit. Matches the negative learning of DT-ST.

    Args:
        logits: (B, C, H, W), any floating-point dtype and memory layout. Gradients flow to it, and to ``pixel_weight``
            if it requires a gradient, never to ``teacher_probs``.
        teacher_probs: (B, C, H, W) floating point in [0, 1]. To exclude pixels such as padding, fill them with 1.
        loss_weight: factor of the loss, at least 0. DT-ST: 0.5.
        pixel_weight: (B, H, W) factor of the sum over classes of each pixel; None is 1.
        reduction: "mean" as above; "sum" does not divide; "none" returns the map that "sum" adds up.

    Returns:
        Scalar, or (B, H, W) for "none", in float32 (float64 for float64 logits). Without such a pair the loss and its
        gradients are exactly 0.

    Raises:
        TypeError: ``logits`` or ``teacher_probs`` is not a floating-point tensor, ``loss_weight`` is not a number, or
            ``pixel_weight`` is not a tensor.
        ValueError: a shape or device does not match ``logits``, ``loss_weight`` is negative, or ``reduction`` is
            unknown. Inside ``value_checks()``: negative probabilities.

    References:
        DT-ST (Zhao et al., Towards Better Stability and Adaptability: Improve Online Self-Training for Model
        Adaptation in Semantic Segmentation, CVPR 2023).

    Example:
        >>> import torch
        >>> logits = torch.tensor([2.0, 0.0]).reshape(1, 2, 1, 1)
        >>> teacher_probs = torch.tensor([0.9, 0.1]).reshape(1, 2, 1, 1)
        >>> negative_loss(logits, teacher_probs)  # only class 1: 0.5 · ln 2
        tensor(0.3466)
    """
    _checks.check_logits(logits)
    _checks.check_class_maps(teacher_probs, logits, "teacher_probs")
    _checks.check_real(loss_weight, "loss_weight", 0.0, math.inf)
    if pixel_weight is not None:
        _checks.check_map(pixel_weight, logits, "pixel_weight")
    _checks.check_choice(reduction, "reduction", REDUCTIONS)
    return ops.negative_loss(logits, teacher_probs, pixel_weight=pixel_weight, factor=loss_weight, reduction=reduction)
