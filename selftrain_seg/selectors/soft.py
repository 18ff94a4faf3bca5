"""Label-regularised soft pseudo-labels (LRENT)."""

from __future__ import annotations

from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg.ops.numbers import near
from selftrain_seg.selectors._arguments import thresholds_near
from selftrain_seg.types import IGNORE_INDEX, PseudoLabels

__all__ = ["select_soft"]


def select_soft(
    logits: Tensor,
    thresholds: float | Tensor,
    *,
    alpha: float | Tensor = 0.25,
    prior: Tensor | None = None,
    valid: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> PseudoLabels:
    """Give each selected pixel a soft label, and every other pixel the zero vector.

    ``y_c ∝ (p_c / kc_c)^(1/α)``, normalised over classes; a smaller α makes sharper labels. A pixel is selected if the
    regularised cost of its label is below that of the zero vector, which is equivalent to
    ``logsumexp_c(log(p_c / kc_c) / α) > 0``. As α → 0, label and selection approach those of ``select_reweighted``.

    Args:
        logits: (B, C, H, W), any floating-point dtype and layout; detached. Computed in float32.
        thresholds: (C,) floating-point probabilities, from ``ClassBalancedThreshold``, or a number in [0, 1] for all
            classes. On any device.
        alpha: weight of the entropy regulariser, from 1e-6 to 1e30, or a () tensor, whose value is not checked. CRST:
            0.25.
        prior: (C, H, W) spatial prior, the same that the thresholds were estimated with.
        valid: (B, H, W) bool; pixels where it is False are never selected.
        ignore_index: value in ``labels`` of the pixels that are not selected; outside [0, C).

    Returns:
        ``PseudoLabels`` with ``soft`` (B, C, H, W) float32, which sums to 1 or is 0 at each pixel; ``labels``, the
        class of the largest entry or ``ignore_index``; ``confidence`` and ``predicted`` of the most probable class.

    Raises:
        TypeError: ``logits`` or ``prior`` is not a floating-point tensor, ``thresholds`` or ``alpha`` is neither that
            nor a number, or ``valid`` is not bool.
        ValueError: a shape or device does not match ``logits``, or a number is out of range.

    References:
        CRST (Zou et al., ICCV 2019), LRENT.

    Example:
        >>> import torch
        >>> logits = torch.tensor([0.6, 0.4]).log().reshape(1, 2, 1, 1)
        >>> select_soft(logits, torch.tensor([0.5, 0.5]), alpha=0.5).soft.flatten()  # 1.2², 0.8² normalised
        tensor([0.6923, 0.3077])
    """
    _checks.check_logits(logits)
    _checks.check_ignore_index(ignore_index, logits.shape[1])
    _checks.check_prior(prior, logits)
    _checks.check_valid(valid, logits)
    thresholds = thresholds_near(thresholds, logits)
    if isinstance(alpha, Tensor):
        _checks.check_scalar(alpha, "alpha")
        alpha = near(alpha, logits).reshape(1)
    else:
        _checks.check_real(alpha, "alpha", 1e-6, 1e30)
        alpha = _checks.on_host(alpha)
    labels, predicted, confidence, soft = ops.soften(
        logits, thresholds, alpha, valid=valid, prior=prior, ignore_index=ignore_index
    )
    return PseudoLabels(labels, confidence, soft=soft, predicted=predicted)
