"""Label and log-confidence of every pixel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selftrain_seg import _checks, ops

__all__ = ["TopConfidence", "log_odds", "top_confidence"]


class TopConfidence(NamedTuple):
    """The result of ``top_confidence``.

    Attributes:
        labels: (B, H, W) int64, the most probable class.
        log_confidence: (B, H, W) float32, its log-probability.
    """

    labels: Tensor
    log_confidence: Tensor


def top_confidence(logits: Tensor, *, prior: Tensor | None = None) -> TopConfidence:
    """Return the most probable class of each pixel and its log-probability.

    ``log m = -log1p(s)`` with ``s = Σ_{c≠ŷ} exp(z_c - max z)``, the sum over the *other* classes. A plain softmax
    rounds to exactly 1.0 on most road and sky pixels of a trained network; ``log m`` still ranks these pixels, down to
    about -1e-38. With a prior q the label is ``argmax_c p_c q_c`` and the result ``log(p_c q_c)``, not renormalised.

    Args:
        logits: (B, C, H, W), any floating-point dtype and memory layout; detached. Computed in float32.
        prior: (C, H, W) non-negative weights that multiply the probabilities, see ``SpatialPrior``.

    Returns:
        ``TopConfidence(labels, log_confidence)``. The log-confidence is NaN where a logit is NaN or the largest logit
        is infinite; such a pixel is never counted or selected.

    Raises:
        TypeError: ``logits`` or ``prior`` is not a floating-point tensor.
        ValueError: ``logits`` is not (B, C, H, W), or ``prior`` is not (C, H, W) on the same device.

    References:
        The confidence of CBST (Zou et al., ECCV 2018), in the log domain.

    Example:
        >>> import torch
        >>> logits = torch.tensor([2.0, 0.0]).reshape(1, 2, 1, 1)
        >>> top = top_confidence(logits)
        >>> top.labels.item(), round(top.log_confidence.exp().item(), 4)  # sigmoid(2)
        (0, 0.8808)
        >>> top_confidence(torch.tensor([40.0, 0.0]).reshape(1, 2, 1, 1)).log_confidence.item()
        -4.248...e-18
    """
    _checks.check_logits(logits)
    _checks.check_prior(prior, logits)
    if prior is None:
        return TopConfidence(*ops.read_log_confidence(logits))
    labels, score = ops.read(logits, prior=prior)  # relative to the largest score that a class can reach
    return TopConfidence(labels, torch.nn.functional.logsigmoid(score) + ops.prior_peaks(prior.detach()).log()[labels])


def log_odds(log_confidence: Tensor) -> Tensor:
    """Convert log-probabilities to log-odds.

    ``o = log m - log(1 - m)``, computed from ``log m`` without forming ``1 - m``, so it stays exact where m rounds to
    1. ``ConfidenceSketch`` counts on this scale, which is monotone in m and does not saturate.

    Args:
        log_confidence: any shape, floating point, values in [-inf, 0], such as ``TopConfidence.log_confidence`` without
            a prior.

    Returns:
        The same shape, dtype and device; ``-inf`` for probability 0 and ``inf`` for probability 1.

    Raises:
        TypeError: ``log_confidence`` is not a tensor.

    Example:
        >>> import torch
        >>> log_odds(torch.tensor([0.5, 0.75]).log())
        tensor([0.0000, 1.0986])
    """
    _checks.check_tensor(log_confidence, "log_confidence")
    return log_confidence - torch.log(-torch.expm1(log_confidence))
