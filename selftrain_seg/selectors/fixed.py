"""One fixed threshold (FixMatch), or an image or batch weight derived from it (DAFormer)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.selectors.hard import select_hard
from selftrain_seg.types import IGNORE_INDEX, PseudoLabels

__all__ = ["select_fixed"]


def select_fixed(
    logits: Tensor,
    *,
    threshold: float = 0.968,
    weigh_by: str | None = None,
    valid: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> PseudoLabels:
    """Label the pixels whose confidence reaches a fixed threshold, or all pixels with a weight.

    ``y = ŷ`` if ``m ≥ τ``, else ``ignore_index``: the same as ``select_hard`` with a number. With ``weigh_by`` every
    pixel keeps its label and has weight ``q``, the share of pixels with ``m ≥ τ`` in its image (``"image"``) or in the
    batch of this rank (``"batch"``, as in the published code of DAFormer).

    Args:
        logits: (B, C, H, W), any floating-point dtype and layout; detached. Computed in float32.
        threshold: τ in [0, 1]. DAFormer: 0.968; FixMatch and UniMatch: 0.95.
        weigh_by: None, ``"image"`` or ``"batch"``.
        valid: (B, H, W) bool; pixels where it is False are never selected, have weight 0 and do not count in q.
        ignore_index: label of the pixels that are not selected; outside [0, C).

    Returns:
        ``PseudoLabels`` with ``labels``, ``confidence`` and ``predicted``, and with ``weigh_by`` also ``pixel_weight``
        (B, H, W) float32. Pixels with a NaN logit are treated like those that are not valid.

    Raises:
        TypeError: ``logits`` is not a floating-point tensor, ``threshold`` is not a number, or ``valid`` is not bool.
        ValueError: ``logits`` is not (B, C, H, W), ``threshold`` is outside [0, 1], or ``weigh_by`` is unknown.

    References:
        FixMatch (Sohn et al., NeurIPS 2020). DAFormer (Hoyer et al., CVPR 2022), Eq. 3.

    Example:
        >>> import torch
        >>> probs = torch.tensor([0.99, 0.6])
        >>> logits = torch.stack([probs, 1 - probs]).log().reshape(1, 2, 1, 2)
        >>> select_fixed(logits, threshold=0.95).labels
        tensor([[[  0, 255]]])
        >>> select_fixed(logits, threshold=0.95, weigh_by="image").pixel_weight
        tensor([[[0.5000, 0.5000]]])
    """
    _checks.check_real(threshold, "threshold", 0.0, 1.0)
    if weigh_by is not None:
        _checks.check_choice(weigh_by, "weigh_by", ("image", "batch"))
    _checks.check_logits(logits)
    _checks.check_ignore_index(ignore_index, logits.shape[1])
    if weigh_by is None:
        return select_hard(logits, threshold, valid=valid, ignore_index=ignore_index)
    pseudo = select_hard(logits, threshold, valid=valid, ignore_index=-1)
    usable, sure = pseudo.confidence > 0, pseudo.labels >= 0
    over = (1, 2) if weigh_by == "image" else (0, 1, 2)
    share = sure.float().sum(dim=over, keepdim=True) / usable.float().sum(dim=over, keepdim=True).clamp(min=1)
    labels = torch.where(usable, cast(Tensor, pseudo.predicted), ignore_index)
    return PseudoLabels(labels, pseudo.confidence, pixel_weight=share * usable, predicted=pseudo.predicted)
