"""Re-weighted hard pseudo-labels (CBST, CRST)."""

from __future__ import annotations

from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg.selectors._arguments import thresholds_near
from selftrain_seg.types import IGNORE_INDEX, PseudoLabels

__all__ = ["select_reweighted"]


def select_reweighted(
    logits: Tensor,
    thresholds: float | Tensor,
    *,
    prior: Tensor | None = None,
    valid: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> PseudoLabels:
    """Label each pixel with the class that exceeds its threshold by the largest factor.

    ``c* = argmax_c p_c / kc_c``; ``y = c*`` if ``p_{c*} / kc_{c*} ≥ 1``, else ``ignore_index``. A class with a low
    threshold may thus beat the most probable one. If all ``kc ≥ 0.5``, the result equals that of ``select_hard``.
    Computed in the log domain, so it does not saturate where p / kc rounds to 1.

    Args:
        logits: (B, C, H, W), any floating-point dtype and layout; detached. Computed in float32.
        thresholds: (C,) floating-point probabilities, from ``ClassBalancedThreshold``, or a number in [0, 1] for all
            classes. A threshold of 0 makes its class win everywhere: use ``small="none"`` (the default) when
            estimating. On any device.
        prior: (C, H, W) spatial prior, the same that the thresholds were estimated with.
        valid: (B, H, W) bool; pixels where it is False are never selected.
        ignore_index: label of the pixels that are not selected; outside [0, C).

    Returns:
        ``PseudoLabels`` with ``labels``, and with ``confidence`` and ``predicted`` of the most probable class ŷ. Pixels
        with a NaN logit are never selected.

    Raises:
        TypeError: ``logits`` or ``prior`` is not a floating-point tensor, ``thresholds`` is neither that nor a number,
            or ``valid`` is not bool.
        ValueError: a shape or device does not match ``logits``, or a number is outside [0, 1].

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
    _checks.check_logits(logits)
    _checks.check_ignore_index(ignore_index, logits.shape[1])
    _checks.check_prior(prior, logits)
    _checks.check_valid(valid, logits)
    thresholds = thresholds_near(thresholds, logits)
    labels, predicted, confidence = ops.select(
        logits, thresholds, reweighted=True, valid=valid, prior=prior, ignore_index=ignore_index
    )
    return PseudoLabels(labels, confidence, predicted=predicted)
