"""Label-regularised soft pseudo-labels (LRENT)."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks, kernels
from selftrain_seg._numerics import blocks, exponential, winner, without
from selftrain_seg.confidence._scores import pixel_scores
from selftrain_seg.kernels import launch
from selftrain_seg.selectors._inputs import checked, empty_maps
from selftrain_seg.selectors._log_domain import negative_log
from selftrain_seg.types import IGNORE_INDEX, PseudoLabels

__all__ = ["select_soft"]


def select_soft(
    logits: Tensor,
    thresholds: Tensor,
    *,
    alpha: float = 0.25,
    prior: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> PseudoLabels:
    """Give each selected pixel a soft label, sharper the smaller alpha, and the others the zero vector.

    ``y_c ∝ (p_c / kc_c)^(1/α)``, normalised over classes. A pixel is selected where this label's regularised cost
    is below that of the zero vector, which reduces exactly to ``logsumexp_c(log(p_c / kc_c) / α) > 0``. As α → 0
    label and selection become those of ``select_reweighted``.

    Args:
        logits: (B, C, H, W), any floating-point dtype and layout; detached. Computed in float32.
        thresholds: (C,) floating-point probabilities, from ``ClassBalancedThreshold``. On any device.
        alpha: weight of the entropy regulariser, at least 1e-6. CRST: 0.25.
        prior: (C, H, W) spatial prior; with thresholds that were estimated with the same.
        ignore_index: label, in ``labels``, of the pixels that are not selected.

    Returns:
        ``PseudoLabels`` with ``soft`` (B, C, H, W) float32, rows that sum to 1 or are zero; ``labels``, the
        largest entry's class or ``ignore_index``; ``confidence`` and ``predicted`` of the most probable class.

    Raises:
        TypeError: ``logits``, ``thresholds`` or ``prior`` is no floating-point tensor, ``alpha`` no number.
        ValueError: a shape or device does not fit ``logits``, or ``alpha`` is below 1e-6.

    References:
        CRST (Zou et al., ICCV 2019), LRENT.

    Example:
        >>> import torch
        >>> logits = torch.tensor([0.6, 0.4]).log().reshape(1, 2, 1, 1)
        >>> select_soft(logits, torch.tensor([0.5, 0.5]), alpha=0.5).soft.flatten()  # 1.2², 0.8² normalised
        tensor([0.6923, 0.3077])
    """
    _checks.check_real(alpha, "alpha", 1e-6, float("inf"))
    logits, thresholds, prior, peaks = checked(logits, thresholds, prior)
    gain = negative_log(thresholds, logits.device, peaks)
    if prior is None and kernels.chosen(logits, "select_soft"):
        labels, predicted, confidence, soft = launch.select_soft(logits, gain / alpha, 1.0 / float(alpha), ignore_index)
        return PseudoLabels(labels, confidence, soft=soft, predicted=predicted)
    gain = gain.view(-1, 1, 1)
    soft = torch.empty_like(logits, dtype=torch.float32)
    labels, predicted, confidence = empty_maps(logits)
    # 0 · NaN is NaN, so unusable pixels must be masked. On CPU looking for one is cheaper than always masking.
    look = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    for images, rows in blocks(logits):
        part = pixel_scores(logits[images, :, rows], None if prior is None else prior[:, rows], peaks)
        value, best, gaps = winner(torch.add(gain / alpha, part.gaps, alpha=1.0 / alpha))
        powers = exponential(gaps)
        # logsumexp as max + log1p(the others): the others may be 1e-30 and still decide at a saturated pixel.
        others = without(powers.clone(), best).sum(dim=1)
        keep = value.squeeze(1) + torch.log1p(others) > part.log_norm / alpha
        scale = torch.where(keep, 1.0 / (1.0 + others), 0.0).unsqueeze(1)
        if look and bool(value.isfinite().all()):
            torch.mul(powers, scale, out=soft[images, :, rows])
        else:
            soft[images, :, rows] = torch.where(keep.unsqueeze(1), powers * scale, 0.0)
        labels[images, rows] = torch.where(keep, best, ignore_index)
        predicted[images, rows] = part.labels
        confidence[images, rows] = part.log_confidence.exp().nan_to_num(nan=0.0)
    return PseudoLabels(labels, confidence, soft=soft, predicted=predicted)
