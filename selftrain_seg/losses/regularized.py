"""Cross entropy with model regularisation (CRST): MRKLD, MRENT and MRL2, on hard or soft labels."""

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
    """Compute cross entropy plus the divergence of the prediction from uniform (MRKLD).

    ``(1/N) Σ -log p_y + reg_weight · (1/N_r) Σ -(1/C) Σ_c log p_c``, both sums over valid pixels. N counts the valid
    pixels, N_r those of images whose ``image_weight`` is not 0; weights never enter the counts. Matches the
    MRKLD objective of CRST. With every image regularised it equals ``(1 + α)`` times cross entropy with label
    smoothing ``α / (1 + α)``, α = ``reg_weight``.

    Args:
        logits: (B, C, H, W), any floating-point dtype and memory layout. The only argument gradients are sure
            to reach; ``pixel_weight`` and ``image_weight`` get theirs if they require it, labels never.
        labels: (B, H, W) integers in [0, C) or ``ignore_index``; or soft labels (B, C, H, W), floating point,
            not negative, a pixel's zero vector meaning ignored. Soft labels of ``select_soft`` make this MRKLD
            on top of LRENT.
        reg_weight: α, not negative. The option of CRST's published code is 0.1, but the code multiplies it in twice,
            so what it ran is 0.01. At 0 the regulariser is not computed.
        image_weight: (B,) weight of the regulariser for each image; None is 1. CRST: 0 for source images.
        pixel_weight: (B, H, W) factor of a pixel's cross entropy and regulariser; None is 1.
        normalize: what ``reduction="mean"`` divides by: "labelled", N and N_r as above and as published; "all", the
            number of pixels, B·H·W, for both.
        ignore_index: label of the pixels that take part in nothing; not used with soft labels.
        reduction: "mean" as above; "sum" without the divisions; "none" for the map whose sum that is.

    Returns:
        Scalar, or (B, H, W) for "none", in float32 (float64 for float64 logits). Without any valid pixel exactly
        0 with gradients of exactly 0.

    State / distributed: none; counts are those of the process, as in ``torch.nn.functional.cross_entropy``.

    Raises:
        TypeError: ``logits`` is not floating point, ``labels`` neither integer nor floating point, ``reg_weight``
            is no number, or a weight is no tensor.
        ValueError: a shape or device does not fit ``logits``, ``reg_weight`` is negative, or ``normalize`` or
            ``reduction`` is unknown. Labels outside [0, C), or negative soft labels, only inside ``value_checks()``.

    References:
        CRST (Zou et al., Confidence Regularized Self-Training, ICCV 2019, arXiv 1908.09822).

    Example:
        >>> import torch
        >>> logits = torch.tensor([3.0, 1.0]).log().reshape(1, 2, 1, 1)  # p = (3/4, 1/4)
        >>> mrkld_loss(logits, torch.tensor([[[0]]]), reg_weight=0.5)  # ln 4/3 + 0.5 · (ln 4/3 + ln 4) / 2
        tensor(0.7062)
    """
    _check(logits, labels, reg_weight, image_weight, pixel_weight, ignore_index)
    return ops.weighted_loss(
        logits,
        labels,
        regulariser="kld",
        factors=(1.0, reg_weight, 0.0),
        pixel_weight=pixel_weight,
        image_weight=image_weight,
        normalize=divide_by(normalize, reduction),
        ignore_index=ignore_index,
    )


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

    ``(1/N) Σ -log p_y + reg_weight · (1/N_r) Σ Σ_c p_c log p_c``: the regulariser is lowest, ``-log C``, at uniform.
    Matches the MRENT objective of CRST. Arguments, counts, results and errors are those of ``mrkld_loss``.

    Args:
        logits: (B, C, H, W), any floating-point dtype and memory layout.
        labels: (B, H, W) integers, or soft labels (B, C, H, W).
        reg_weight: α, not negative.
        image_weight: (B,) weight of the regulariser for each image.
        pixel_weight: (B, H, W) factor of each pixel.
        normalize: "labelled" (as published) or "all".
        ignore_index: label of the pixels that take part in nothing; outside [0, C).
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
    _check(logits, labels, reg_weight, image_weight, pixel_weight, ignore_index)
    return ops.weighted_loss(
        logits,
        labels,
        regulariser="entropy",
        factors=(1.0, -reg_weight, 0.0),
        pixel_weight=pixel_weight,
        image_weight=image_weight,
        normalize=divide_by(normalize, reduction),
        ignore_index=ignore_index,
    )


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
    """Compute cross entropy plus the squared length of the predicted probabilities (MRL2).

    ``(1/N) Σ -log p_y + reg_weight · (1/N_r) Σ Σ_c p_c²``: the regulariser is lowest, ``1/C``, at uniform. Matches
    the MRL2 objective of CRST. Arguments, counts, results and errors are those of ``mrkld_loss``.

    Args:
        logits: (B, C, H, W), any floating-point dtype and memory layout.
        labels: (B, H, W) integers, or soft labels (B, C, H, W).
        reg_weight: α, not negative.
        image_weight: (B,) weight of the regulariser for each image.
        pixel_weight: (B, H, W) factor of each pixel.
        normalize: "labelled" (as published) or "all".
        ignore_index: label of the pixels that take part in nothing; outside [0, C).
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
    _check(logits, labels, reg_weight, image_weight, pixel_weight, ignore_index)
    return ops.weighted_loss(
        logits,
        labels,
        regulariser="square",
        factors=(1.0, reg_weight, 0.0),
        pixel_weight=pixel_weight,
        image_weight=image_weight,
        normalize=divide_by(normalize, reduction),
        ignore_index=ignore_index,
    )


def _check(
    logits: Tensor,
    labels: Tensor,
    reg_weight: float,
    image_weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignore_index: int,
) -> None:
    check_target(logits, labels, ignore_index, pixel_weight)
    _checks.check_real(reg_weight, "reg_weight", 0.0, math.inf)
    if image_weight is not None:
        _checks.check_image_values(image_weight, logits, "image_weight")
