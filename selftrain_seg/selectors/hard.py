"""Plain hard pseudo-labels."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import kernels
from selftrain_seg._numerics import blocks
from selftrain_seg.confidence._scores import pixel_scores
from selftrain_seg.kernels import launch
from selftrain_seg.selectors._inputs import checked, empty_maps
from selftrain_seg.selectors._log_domain import threshold_scores
from selftrain_seg.types import IGNORE_INDEX, PseudoLabels

__all__ = ["select_hard"]


def select_hard(
    logits: Tensor, thresholds: Tensor, *, prior: Tensor | None = None, ignore_index: int = IGNORE_INDEX
) -> PseudoLabels:
    """Label each pixel with its most probable class where that class's threshold is reached.

    ``y = ŷ`` if ``m ≥ kc_ŷ``, else ``ignore_index``, with ``ŷ = argmax_c p_c`` and ``m = max_c p_c``. The
    comparison is one of log-odds, so thresholds work where m rounds to 1.

    Args:
        logits: (B, C, H, W), any floating-point dtype and layout; detached. Computed in float32.
        thresholds: (C,) floating-point probabilities, from ``ClassBalancedThreshold`` or ``GlobalThreshold``. 0
            selects all pixels of a class, 1 only those of certainty. On any device.
        prior: (C, H, W) spatial prior; with thresholds that were estimated with the same.
        ignore_index: label of the pixels that are not selected.

    Returns:
        ``PseudoLabels`` with ``labels``, ``confidence`` and ``predicted``. Pixels with a NaN logit are never
        selected.

    Raises:
        TypeError: ``logits``, ``thresholds`` or ``prior`` is no floating-point tensor.
        ValueError: a shape or device does not fit ``logits``.

    References:
        DST-CBC (Feng et al., arXiv:2004.08514); with a global threshold, plain self-training.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[3.0, 1.0], [0.0, 0.0]]).reshape(1, 2, 1, 2)
        >>> select_hard(logits, torch.tensor([0.9, 0.9])).labels  # confidences 0.95 and 0.73
        tensor([[[  0, 255]]])
    """
    logits, thresholds, prior, peaks = checked(logits, thresholds, prior)
    bar = threshold_scores(thresholds, logits.device, peaks)
    if prior is None and kernels.chosen(logits, "select_hard"):
        labels, predicted, confidence = launch.select_hard(logits, bar, ignore_index)
        return PseudoLabels(labels, confidence, predicted=predicted)
    labels, predicted, confidence = empty_maps(logits)
    for images, rows in blocks(logits):
        part = pixel_scores(logits[images, :, rows], None if prior is None else prior[:, rows], peaks)
        keep = part.score >= bar[part.labels]
        labels[images, rows] = torch.where(keep, part.labels, ignore_index)
        predicted[images, rows] = part.labels
        confidence[images, rows] = part.log_confidence.exp().nan_to_num(nan=0.0)
    return PseudoLabels(labels, confidence, predicted=predicted)
