"""Cross entropy with class weights, and the focal class weights of SAC."""

from __future__ import annotations

import math

from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg.losses._arguments import NORMALIZE, check_target, divide_by
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["class_weighted_loss", "focal_class_weight"]


def focal_class_weight(running_confidence: Tensor, *, exponent: float = 3.0) -> Tensor:
    """Compute class weights from a running class confidence: larger for rare and hard classes.

    ``w_c = (1 - r_c)^λ``. Matches the focal term of SAC.

    Args:
        running_confidence: (C,) floating point in [0, 1], such as ``RunningConfidenceSelector.running_confidence``;
            clamped to that range, detached.
        exponent: λ, at least 0; 0 gives weights of 1. SAC: 3.

    Returns:
        (C,) weights in [0, 1], same dtype and device.

    Raises:
        TypeError: ``running_confidence`` is not a floating-point tensor, or ``exponent`` is not a number.
        ValueError: ``running_confidence`` is not (C,), or ``exponent`` is negative.

    References:
        SAC (Araslanov and Roth, Self-supervised Augmentation Consistency for Adapting Semantic Segmentation,
        CVPR 2021, arXiv 2105.00097).

    Example:
        >>> import torch
        >>> focal_class_weight(torch.tensor([0.5, 0.0]), exponent=2.0)
        tensor([0.2500, 1.0000])
    """
    _checks.check_vector(running_confidence, "running_confidence")
    _checks.check_real(exponent, "exponent", 0.0, math.inf)
    return (1 - running_confidence.detach().clamp(0, 1)) ** exponent


def class_weighted_loss(
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor,
    *,
    normalize: str = "labelled",
    pixel_weight: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> Tensor:
    """Compute cross entropy with a weight per class.

    ``(1/D) Σ_labelled w_y · -log p_y``, where D is

    - "labelled": the number of labelled pixels.
    - "all": the number of pixels, B·H·W, as in the published code of SAC; the fewer pixels are labelled, the smaller
      the loss.
    - "weights": ``Σ_labelled w_y``, as in ``torch.nn.functional.cross_entropy``.

    With ``focal_class_weight`` and the teacher's confidence as ``pixel_weight``, this is the loss of SAC.

    Args:
        logits: (B, C, H, W), any floating-point dtype and memory layout. Gradients flow to it, and to ``pixel_weight``
            if it requires a gradient, never to ``class_weight``.
        labels: (B, H, W) integers in [0, C) or ``ignore_index``.
        class_weight: (C,) w.
        normalize: divisor of ``reduction="mean"``, see above.
        pixel_weight: (B, H, W) further factor of the cross entropy of each pixel; None is 1. It does not change D.
        ignore_index: label of pixels that do not contribute; outside [0, C).
        reduction: "mean" as above; "sum" does not divide; "none" returns the map that "sum" adds up.

    Returns:
        Scalar, or (B, H, W) for "none", in float32 (float64 for float64 logits). Without a labelled pixel the loss and
        its gradients are exactly 0.

    Raises:
        TypeError: ``logits`` is not floating point, ``labels`` is not integer, or a weight is not a tensor.
        ValueError: a shape or device does not match ``logits``, or ``normalize`` or ``reduction`` is unknown.
            Inside ``value_checks()``: labels outside [0, C).

    References:
        SAC (Araslanov and Roth, Self-supervised Augmentation Consistency for Adapting Semantic Segmentation,
        CVPR 2021, arXiv 2105.00097).

    Example:
        >>> import torch
        >>> labels = torch.tensor([[[0, 1, 255, 255]]])
        >>> class_weighted_loss(torch.zeros(1, 2, 1, 4), labels, torch.tensor([1.0, 0.5]))  # (1 + 0.5) · ln 2 / 2
        tensor(0.5199)
    """
    check_target(logits, labels, ignore_index, pixel_weight, soft=False)
    _checks.check_class_values(class_weight, logits, "class_weight")
    return ops.weighted_loss(
        logits,
        labels,
        pixel_weight=pixel_weight,
        class_weight=class_weight,
        normalize=divide_by(normalize, reduction, (*NORMALIZE, "weights")),
        ignore_index=ignore_index,
    )
