"""Re-weighted hard pseudo-labels, the selection of CBST and CRST."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import kernels
from selftrain_seg._numerics import blocks, winner
from selftrain_seg.confidence._scores import pixel_scores
from selftrain_seg.kernels import launch
from selftrain_seg.selectors._inputs import checked, empty_maps
from selftrain_seg.selectors._log_domain import negative_log
from selftrain_seg.types import IGNORE_INDEX, PseudoLabels

__all__ = ["select_reweighted"]


def select_reweighted(
    logits: Tensor, thresholds: Tensor, *, prior: Tensor | None = None, ignore_index: int = IGNORE_INDEX
) -> PseudoLabels:
    """Label each pixel with the class that exceeds its own threshold most, where one does.

    ``c* = argmax_c p_c / kc_c``; ``y = c*`` if ``p_{c*} / kc_{c*} ≥ 1``, else ``ignore_index``. So a hard class
    with a low threshold may win over the most probable one. When every ``kc ≥ 0.5`` this equals
    ``select_hard``. Computed as ``d_c - log kc_c ≥ log1p(s)`` (``d_c = z_c - max z``, s the sum of the others),
    which does not saturate where p / kc rounds to 1.

    Args:
        logits: (B, C, H, W), any floating-point dtype and layout; detached. Computed in float32.
        thresholds: (C,) floating-point probabilities, from ``ClassBalancedThreshold``. A threshold of 0 makes
            its class win everywhere: use ``small="none"`` (the default) when estimating. On any device.
        prior: (C, H, W) spatial prior; with thresholds that were estimated with the same.
        ignore_index: label of the pixels that are not selected.

    Returns:
        ``PseudoLabels`` with ``labels``, ``confidence`` and ``predicted``; the latter two are those of the most
        probable class ŷ. Pixels with a NaN logit are never selected.

    Raises:
        TypeError: ``logits``, ``thresholds`` or ``prior`` is no floating-point tensor.
        ValueError: a shape or device does not fit ``logits``.

    References:
        CBST (Zou et al., ECCV 2018), Eq. 7 with kc = exp(-k_c); CRST (Zou et al., ICCV 2019).

    Example:
        >>> import torch
        >>> logits = torch.tensor([0.6, 0.4]).log().reshape(1, 2, 1, 1)
        >>> select_reweighted(logits, torch.tensor([0.9, 0.3])).labels.item()  # 0.6/0.9 < 1 <= 0.4/0.3
        1
        >>> select_reweighted(logits, torch.tensor([0.9, 0.8])).labels.item()
        255
    """
    logits, thresholds, prior, peaks = checked(logits, thresholds, prior)
    gain = negative_log(thresholds, logits.device, peaks)
    if prior is None and kernels.chosen(logits, "select_reweighted"):
        labels, predicted, confidence = launch.select_reweighted(logits, gain, ignore_index)
        return PseudoLabels(labels, confidence, predicted=predicted)
    gain = gain.view(-1, 1, 1)
    labels, predicted, confidence = empty_maps(logits)
    for images, rows in blocks(logits):
        part = pixel_scores(logits[images, :, rows], None if prior is None else prior[:, rows], peaks)
        value, best, _ = winner(part.gaps + gain)
        keep = value.squeeze(1) >= part.log_norm
        labels[images, rows] = torch.where(keep, best, ignore_index)
        predicted[images, rows] = part.labels
        confidence[images, rows] = part.log_confidence.exp().nan_to_num(nan=0.0)
    return PseudoLabels(labels, confidence, predicted=predicted)
