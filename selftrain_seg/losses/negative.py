"""Negative learning: push down the classes that a teacher is sure a pixel does not have (DT-ST)."""

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
    """Compute binary cross entropy against 0 for the classes below chance in the teacher's eyes.

    ``loss_weight · (1/K) Σ_{(pixel, class): t_c ≤ 1/C} log(1 + exp(z_c))`` where K counts these (pixel, class) pairs;
    weights do not enter it. Matches the negative learning of DT-ST, ``z_c`` being its own binary logit.

    Args:
        logits: (B, C, H, W), any floating-point dtype and memory layout. The only argument gradients are sure to
            reach; ``pixel_weight`` gets one if it requires it, ``teacher_probs`` never.
        teacher_probs: (B, C, H, W) floating point in [0, 1]. Fill pixels that shall not take part, such as
            padding, with 1.
        loss_weight: factor of the whole, not negative. DT-ST: 0.5.
        pixel_weight: (B, H, W) factor of a pixel's sum over its classes; None is 1.
        reduction: "mean" as above; "sum" without the division; "none" for the map whose sum that is.

    Returns:
        Scalar, or (B, H, W) for "none", in float32 (float64 for float64 logits). Without any such pair exactly 0
        with gradients of exactly 0.

    Raises:
        TypeError: ``logits`` or ``teacher_probs`` is no floating-point tensor, ``loss_weight`` no number, or
            ``pixel_weight`` no tensor.
        ValueError: a shape or device does not fit ``logits``, ``loss_weight`` is negative, or ``reduction`` is unknown.
            Negative probabilities, only inside ``value_checks()``.

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
