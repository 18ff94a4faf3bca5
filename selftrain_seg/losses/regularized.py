"""Cross entropy with model regularisation (CRST): MRKLD, MRENT and MRL2."""

from __future__ import annotations

import math

from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg.losses._arguments import check_target, divide_by
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["mrent_loss", "mrkld_loss", "mrl2_loss"]


def mrkld_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    reg_weight: float = 0.1,
    image_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    normalize: str = "labelled",
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> Tensor:
    """Compute cross entropy plus the divergence of the prediction from the uniform distribution (MRKLD).

    ``(1/N) Σ -log p_y + reg_weight · (1/N_r) Σ -(1/C) Σ_c log p_c``, with both sums over labelled pixels. N counts the
    labelled pixels, and N_r those in images whose ``image_weight`` is not 0. Matches the MRKLD objective of CRST. If
    all images are regularised, the loss equals ``(1 + α)`` times cross entropy with label smoothing ``α / (1 + α)``,
    where α is ``reg_weight``.

    Args:
        logits: (B, C, H, W), any floating-point dtype and memory layout. Gradients flow to it, and to ``pixel_weight``
            and ``image_weight`` if they require a gradient, never to labels.
        labels: (B, H, W) integers in [0, C) or ``ignore_index``; or soft labels (B, C, H, W), floating point, not
            negative. Pixels with a zero vector are ignored. Soft labels from ``select_soft`` combine MRKLD with LRENT.
        reg_weight: α, at least 0. The published code of CRST sets 0.1 but multiplies it in twice, so its effective
            value is 0.01. With 0 the regulariser is not computed.
        image_weight: (B,) weight of the regulariser per image; None is 1. CRST: 0 for source images.
        pixel_weight: (B, H, W) factor of the cross entropy and regulariser of each pixel; None is 1. Weights do not
            change N and N_r.
        normalize: divisor of ``reduction="mean"``, "labelled" for N and N_r as above and as published, or "all" for
            B·H·W in both.
        ignore_index: label of pixels that do not contribute; not used with soft labels.
        reduction: "mean" as above; "sum" does not divide; "none" returns the map that "sum" adds up.

    Returns:
        Scalar, or (B, H, W) for "none", in float32 (float64 for float64 logits). Without a labelled pixel the loss and
        its gradients are exactly 0.

    State / distributed: none; N and N_r count the pixels of this process, as in ``torch.nn.functional.cross_entropy``.

    Raises:
        TypeError: ``logits`` is not floating point, ``labels`` is neither integer nor floating point, ``reg_weight`` is
            not a number, or a weight is not a tensor.
        ValueError: a shape or device does not match ``logits``, ``reg_weight`` is negative, or ``normalize`` or
            ``reduction`` is unknown. Inside ``value_checks()``: labels outside [0, C), or negative soft labels.

    References:
        CRST (Zou et al., Confidence Regularized Self-Training, ICCV 2019, arXiv 1908.09822).

    Example:
        >>> import torch
        >>> logits = torch.tensor([3.0, 1.0]).log().reshape(1, 2, 1, 1)  # p = (3/4, 1/4)
        >>> mrkld_loss(logits, torch.tensor([[[0]]]), reg_weight=0.5)  # ln 4/3 + 0.5 · (ln 4/3 + ln 4) / 2
        tensor(0.7062)
    """
    divisor = divide_by(normalize, reduction)
    return _regularised("kld", logits, labels, reg_weight, image_weight, pixel_weight, ignore_index, divisor)


def mrent_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    reg_weight: float = 0.1,
    image_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    normalize: str = "labelled",
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> Tensor:
    """Compute cross entropy minus the entropy of the prediction (MRENT).

    ``(1/N) Σ -log p_y + reg_weight · (1/N_r) Σ Σ_c p_c log p_c``. The regulariser has its minimum, ``-log C``, at the
    uniform distribution. Matches the MRENT objective of CRST. Arguments, counts, results and errors are those of
    ``mrkld_loss``.

    Args:
        logits: (B, C, H, W), any floating-point dtype and memory layout.
        labels: (B, H, W) integers, or soft labels (B, C, H, W).
        reg_weight: α, at least 0.
        image_weight: (B,) weight of the regulariser per image.
        pixel_weight: (B, H, W) factor of the terms of each pixel.
        normalize: "labelled" (as published) or "all".
        ignore_index: label of pixels that do not contribute; outside [0, C).
        reduction: "mean", "sum" or "none".

    Returns:
        Scalar, or (B, H, W) for "none"; see ``mrkld_loss``.

    Raises:
        TypeError: see ``mrkld_loss``.
        ValueError: see ``mrkld_loss``.

    References:
        CRST (Zou et al., Confidence Regularized Self-Training, ICCV 2019, arXiv 1908.09822).

    Example:
        >>> import torch
        >>> mrent_loss(torch.zeros(1, 4, 1, 1), torch.tensor([[[0]]]), reg_weight=0.5)  # ln 4 - 0.5 · ln 4
        tensor(0.6931)
    """
    divisor = divide_by(normalize, reduction)
    return _regularised("entropy", logits, labels, reg_weight, image_weight, pixel_weight, ignore_index, divisor)


def mrl2_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    reg_weight: float = 0.1,
    image_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    normalize: str = "labelled",
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> Tensor:
    """Compute cross entropy plus the squared L2 norm of the predicted probabilities (MRL2).

    ``(1/N) Σ -log p_y + reg_weight · (1/N_r) Σ Σ_c p_c²``. The regulariser has its minimum, ``1/C``, at the uniform
    distribution. Matches the MRL2 objective of CRST. Arguments, counts, results and errors are those of ``mrkld_loss``.

    Args:
        logits: (B, C, H, W), any floating-point dtype and memory layout.
        labels: (B, H, W) integers, or soft labels (B, C, H, W).
        reg_weight: α, at least 0.
        image_weight: (B,) weight of the regulariser per image.
        pixel_weight: (B, H, W) factor of the terms of each pixel.
        normalize: "labelled" (as published) or "all".
        ignore_index: label of pixels that do not contribute; outside [0, C).
        reduction: "mean", "sum" or "none".

    Returns:
        Scalar, or (B, H, W) for "none"; see ``mrkld_loss``.

    Raises:
        TypeError: see ``mrkld_loss``.
        ValueError: see ``mrkld_loss``.

    References:
        CRST (Zou et al., Confidence Regularized Self-Training, ICCV 2019, arXiv 1908.09822).

    Example:
        >>> import torch
        >>> mrl2_loss(torch.zeros(1, 4, 1, 1), torch.tensor([[[0]]]), reg_weight=0.5)  # ln 4 + 0.5 · 4 · (1/4)²
        tensor(1.5113)
    """
    divisor = divide_by(normalize, reduction)
    return _regularised("square", logits, labels, reg_weight, image_weight, pixel_weight, ignore_index, divisor)


def _regularised(
    regulariser: str,
    logits: Tensor,
    labels: Tensor,
    reg_weight: float,
    image_weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignore_index: int,
    normalize: str,
) -> Tensor:
    """Check the arguments and compute the loss; the entropy is maximised, other regularisers are minimised."""
    check_target(logits, labels, ignore_index, pixel_weight)
    _checks.check_real(reg_weight, "reg_weight", 0.0, math.inf)
    if image_weight is not None:
        _checks.check_image_values(image_weight, logits, "image_weight")
    return ops.weighted_loss(
        logits,
        labels,
        regulariser=regulariser,
        factors=(1.0, -reg_weight if regulariser == "entropy" else reg_weight, 0.0),
        pixel_weight=pixel_weight,
        image_weight=image_weight,
        normalize=normalize,
        ignore_index=ignore_index,
    )
