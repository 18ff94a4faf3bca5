"""Cross entropy with separate regularisers for labelled and ignored pixels (IAST)."""

from __future__ import annotations

import math

from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg.losses._arguments import check_target, divide_by
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["region_guided_loss"]


def region_guided_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    confident_weight: float = 0.1,
    ignored_weight: float = 3.0,
    per_class: bool = True,
    pixel_weight: Tensor | None = None,
    normalize: str = "labelled",
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> Tensor:
    """Compute cross entropy plus a divergence on labelled pixels and an entropy on ignored pixels (IAST).

    ``(1/N) Σ_labelled -log p_y + λ_c · mean_labelled(K) + λ_i · mean_ignored(E)`` with ``K = -(1/C) Σ_c log p_c``
    (divergence from uniform, up to a constant) and ``E = -Σ_c p_c log p_c`` (entropy). With N labelled and M ignored
    pixels, the two means divide by C·N and C·M, as in the published code, for which the defaults 0.1 and 3.0 were
    chosen. With ``per_class=False`` they divide by N and M, as in the equations of the paper; the same loss then needs
    weights C times smaller.

    Args:
        logits: (B, C, H, W), any floating-point dtype and memory layout. Gradients flow to it, and to ``pixel_weight``
            if it requires a gradient.
        labels: (B, H, W) integers in [0, C) or ``ignore_index``. The entropy is taken over all ignored pixels; exclude
            padding with a ``pixel_weight`` of 0.
        confident_weight: λ_c, at least 0. IAST: 0.1.
        ignored_weight: λ_i, at least 0. IAST: 3.0. With 0, ignored pixels do not contribute.
        per_class: whether ``reduction="mean"`` averages the regularisers over pixels and classes, or over pixels only.
        pixel_weight: (B, H, W) factor of all terms of a pixel; None is 1. It does not change N and M.
        normalize: divisor, "labelled" for N and M as above and as published, or "all" for B·H·W.
        ignore_index: label of the ignored pixels; outside [0, C).
        reduction: "mean" as above; "sum" does not divide; "none" returns the map that "sum" adds up.

    Returns:
        Scalar, or (B, H, W) for "none", in float32 (float64 for float64 logits). An empty region contributes
        exactly 0.

    Raises:
        TypeError: ``logits`` is not floating point, ``labels`` is not integer, a weight is not a number, or
            ``pixel_weight`` is not a tensor.
        ValueError: a shape or device does not match ``logits``, a weight is negative, or ``normalize`` or
            ``reduction`` is unknown. Inside ``value_checks()``: labels outside [0, C).

    References:
        IAST (Mei et al., Instance Adaptive Self-Training, ECCV 2020, arXiv 2008.12197), region-guided
        regularisation.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log().reshape(1, 2, 1, 2)  # p = (3/4, 1/4), (1/2, 1/2)
        >>> labels = torch.tensor([[[0, 255]]])
        >>> region_guided_loss(logits, labels, confident_weight=1.0, ignored_weight=1.0, per_class=False)
        tensor(1.8178)
        >>> # ln 4/3 + (ln 4/3 + ln 4) / 2 + ln 2
    """
    check_target(logits, labels, ignore_index, pixel_weight, soft=False)
    _checks.check_real(confident_weight, "confident_weight", 0.0, math.inf)
    _checks.check_real(ignored_weight, "ignored_weight", 0.0, math.inf)
    divide = divide_by(normalize, reduction)
    classes = logits.shape[1] if per_class and reduction == "mean" else 1
    return ops.weighted_loss(
        logits,
        labels,
        regulariser="kld",
        factors=(1.0, confident_weight / classes, ignored_weight / classes),
        pixel_weight=pixel_weight,
        normalize=divide,
        ignore_index=ignore_index,
    )
