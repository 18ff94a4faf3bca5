"""Plain hard pseudo-labels."""

from __future__ import annotations

from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg.selectors._arguments import thresholds_near
from selftrain_seg.types import IGNORE_INDEX, PseudoLabels

__all__ = ["select_hard"]


def select_hard(
    logits: Tensor,
    thresholds: float | Tensor,
    *,
    prior: Tensor | None = None,
    valid: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> PseudoLabels:
    """Label each pixel with its most probable class if its confidence reaches the threshold of that class.

    ``y = ŷ`` if ``m ≥ kc_ŷ``, else ``ignore_index``, with ``ŷ = argmax_c p_c`` and ``m = max_c p_c``. Log-odds are
    compared, so thresholds also work where m rounds to 1.

    Args:
        logits: (B, C, H, W), any floating-point dtype and layout; detached. Computed in float32.
        thresholds: (C,) floating-point probabilities, from ``ClassBalancedThreshold`` or ``GlobalThreshold``, or a
            number in [0, 1] for all classes. 0 selects all pixels of a class, 1 only certain ones. On any device.
        prior: (C, H, W) spatial prior, the same that the thresholds were estimated with.
        valid: (B, H, W) bool; pixels where it is False are never selected.
        ignore_index: label of the pixels that are not selected; outside [0, C).

    Returns:
        ``PseudoLabels`` with ``labels``, ``confidence`` and ``predicted``. Pixels with a NaN logit are never
        selected.

    Raises:
        TypeError: ``logits`` or ``prior`` is not a floating-point tensor, ``thresholds`` is neither that nor a number,
            or ``valid`` is not bool.
        ValueError: a shape or device does not match ``logits``, or a number is outside [0, 1].

    References:
        DST-CBC (Feng et al., arXiv:2004.08514); with a global threshold, plain self-training.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[3.0, 1.0], [0.0, 0.0]]).reshape(1, 2, 1, 2)
        >>> select_hard(logits, torch.tensor([0.9, 0.9])).labels  # confidences 0.95 and 0.73
        tensor([[[  0, 255]]])
    """
    _checks.check_logits(logits)
    _checks.check_ignore_index(ignore_index, logits.shape[1])
    _checks.check_prior(prior, logits)
    _checks.check_valid(valid, logits)
    thresholds = thresholds_near(thresholds, logits)
    labels, predicted, confidence = ops.select(
        logits, thresholds, reweighted=False, valid=valid, prior=prior, ignore_index=ignore_index
    )
    return PseudoLabels(labels, confidence, predicted=predicted)
