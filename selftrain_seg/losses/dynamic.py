"""Cross entropy weighted by the probability of each pseudo-label (DST-CBC, DMT)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg.losses._arguments import check_target, divide_by
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["dynamic_loss", "dynamic_mutual_loss"]


def dynamic_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma: float,
    is_pseudo: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    normalize: str = "labelled",
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> Tensor:
    """Compute cross entropy weighted by a power of the probability of each pseudo-label.

    ``(1/N) Σ w · -log p_y``, with ``w = p_y^γ`` on pseudo-labelled images and ``w = 1`` on labelled ones. No gradient
    flows through w. N counts the labelled pixels of all images, regardless of their weights. Matches the dynamic loss
    of DST-CBC.

    Args:
        logits: (B, C, H, W), any floating-point dtype and memory layout. Gradients flow to it, and to ``pixel_weight``
            if it requires a gradient.
        labels: (B, H, W) integers in [0, C) or ``ignore_index``.
        gamma: γ, at least 0; 0 is plain cross entropy. DST-CBC: 9, with 1/106 and with 1/20 of VOC labelled.
        is_pseudo: (B,) bool, the images whose labels are pseudo-labels; None means all of them.
        pixel_weight: (B, H, W) further factor of the cross entropy of each pixel; None is 1.
        normalize: divisor, "labelled" for N as above and as published, or "all" for B·H·W.
        ignore_index: label of pixels that do not contribute; outside [0, C).
        reduction: "mean" as above; "sum" does not divide; "none" returns the map that "sum" adds up.

    Returns:
        Scalar, or (B, H, W) for "none", in float32 (float64 for float64 logits). Without a labelled pixel the loss and
        its gradients are exactly 0.

    Raises:
        TypeError: ``logits`` is not floating point, ``labels`` is not integer, ``is_pseudo`` is not bool, ``gamma`` is
            not a number, or ``pixel_weight`` is not a tensor.
        ValueError: a shape or device does not match ``logits``, ``gamma`` is negative, or ``normalize`` or
            ``reduction`` is unknown.
            Inside ``value_checks()``: labels outside [0, C).

    References:
        DST-CBC (Feng et al., Semi-Supervised Semantic Segmentation via Dynamic Self-Training and Class-Balanced
        Curriculum, 2020, arXiv 2004.08514).

    Example:
        >>> import torch
        >>> logits = torch.tensor([1.0, 1.0]).log().reshape(1, 2, 1, 1)  # p = (1/2, 1/2)
        >>> dynamic_loss(logits, torch.tensor([[[0]]]), gamma=2.0)  # (1/2)² · ln 2
        tensor(0.1733)
    """
    check_target(logits, labels, ignore_index, pixel_weight, soft=False)
    _checks.check_real(gamma, "gamma", 0.0, math.inf)
    if is_pseudo is not None:
        _checks.check_image_flags(is_pseudo, logits, "is_pseudo")
    exponent = logits.new_full(logits.shape[:1], gamma, dtype=ops.wide(logits))
    return ops.weighted_loss(
        logits,
        labels,
        pixel_weight=pixel_weight,
        exponent=exponent if is_pseudo is None else torch.where(is_pseudo, exponent, 0),
        normalize=divide_by(normalize, reduction),
        ignore_index=ignore_index,
    )


def dynamic_mutual_loss(
    logits: Tensor,
    labels: Tensor,
    confidence: Tensor,
    *,
    gamma_agree: float,
    gamma_disagree: float,
    is_pseudo: Tensor | None = None,
    flip: bool = False,
    normalize: str = "labelled",
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> Tensor:
    """Compute cross entropy with the labels of another network, weighted by the agreement of the two networks.

    ``(1/N) Σ w · -log p_y`` over labelled pixels. ŷ and m are the label and confidence of this network, y and m_B those
    of the other. On pseudo-labelled images

    - ŷ = y: ``w = p_y^γ1``
    - ŷ ≠ y and m > m_B: ``w = 0``; with ``flip`` the label becomes ŷ and ``w = (1 - m_B)^γ2``
    - ŷ ≠ y and m ≤ m_B: ``w = p_y^γ2``

    and ``w = 1`` on labelled ones. No gradient flows through w. N counts the labelled pixels of all images, regardless
    of their weights. With γ1 = γ2 = 0 the loss is plain cross entropy, as in the published code: no pixel is dropped or
    flipped. Matches the dynamic mutual loss of DMT, and with ``flip`` its ablation. ŷ and m are computed in float32; m
    must exceed m_B by more than the rounding error. ``torch.func.vmap`` processes one batch after another.

    Args:
        logits: (B, C, H, W) of the network in training, any floating-point dtype and memory layout. The only argument
            that gets a gradient.
        labels: (B, H, W) integers in [0, C) or ``ignore_index``: pseudo-labels of the other network, or true labels.
        confidence: (B, H, W) in [0, 1], m_B, such as ``PseudoLabels.confidence``.
        gamma_agree: γ1, at least 0. DMT: 5 on VOC (1/106, 1/50, 1/20 and 1,464 labelled), 3 on Cityscapes (1/8).
        gamma_disagree: γ2, at least 0. DMT: the same.
        is_pseudo: (B,) bool, the images whose labels are pseudo-labels; None means all of them.
        flip: whether to use the label of this network where the two disagree and this one is more confident.
        normalize: divisor, "labelled" for N as above and as published, or "all" for B·H·W.
        ignore_index: label of pixels that do not contribute; outside [0, C).
        reduction: "mean" as above; "sum" does not divide; "none" returns the map that "sum" adds up.

    Returns:
        Scalar, or (B, H, W) for "none", in float32 (float64 for float64 logits). Without a labelled pixel the loss and
        its gradients are exactly 0.

    Raises:
        TypeError: ``logits`` is not floating point, ``labels`` is not integer, ``confidence`` is not a tensor,
            ``is_pseudo`` is not bool, or a gamma is not a number.
        ValueError: a shape or device does not match ``logits``, a gamma is negative, or ``normalize`` or
            ``reduction`` is unknown.
            Inside ``value_checks()``: labels outside [0, C).

    References:
        DMT (Feng et al., DMT: Dynamic Mutual Training for Semi-Supervised Learning, Pattern Recognition 2022,
        arXiv 2004.08514).

    Example:
        >>> import torch
        >>> logits = torch.tensor([3.0, 1.0]).log().reshape(1, 2, 1, 1)  # p = (3/4, 1/4), so it predicts class 0
        >>> def loss(label, confidence, **options):
        ...     confidence = torch.full((1, 1, 1), confidence)
        ...     labels = torch.full((1, 1, 1), label)
        ...     return dynamic_mutual_loss(
        ...         logits, labels, confidence, gamma_agree=1.0, gamma_disagree=2.0, **options
        ...     ).item()
        >>> round(loss(0, 0.6), 4)  # 3/4 · ln 4/3
        0.2158
        >>> round(loss(1, 0.9), 4)  # (1/4)² · ln 4
        0.0866
        >>> loss(1, 0.6)
        0.0
        >>> round(loss(1, 0.6, flip=True), 4)  # (1 - 0.6)² · ln 4/3
        0.046
    """
    check_target(logits, labels, ignore_index, soft=False)
    _checks.check_map(confidence, logits, "confidence")
    _checks.check_real(gamma_agree, "gamma_agree", 0.0, math.inf)
    _checks.check_real(gamma_disagree, "gamma_disagree", 0.0, math.inf)
    if is_pseudo is not None:
        _checks.check_image_flags(is_pseudo, logits, "is_pseudo")
    divide = divide_by(normalize, reduction)
    if gamma_agree == 0 and gamma_disagree == 0:
        return ops.weighted_loss(logits, labels, normalize=divide, ignore_index=ignore_index)
    return ops.mutual_loss(
        logits,
        labels,
        confidence,
        is_pseudo=is_pseudo,
        gamma_agree=gamma_agree,
        gamma_disagree=gamma_disagree,
        flip=flip,
        normalize=divide,
        ignore_index=ignore_index,
    )
