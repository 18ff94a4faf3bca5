"""Cross entropy with model regularisation (CRST): MRKLD, MRENT and MRL2, on hard or soft labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.losses._core import pixel_maps
from selftrain_seg.losses._module import LossModule
from selftrain_seg.losses._reduce import REDUCTIONS, Term, reduce, weigh
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["MRENTLoss", "MRKLDLoss", "MRL2Loss", "mrent_loss", "mrkld_loss", "mrl2_loss"]


def mrkld_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    weight: float = 0.1,
    image_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> Tensor:
    """Compute cross entropy plus the divergence of the prediction from uniform (MRKLD).

    ``(1/N) Σ -log p_y + weight · (1/N_r) Σ -(1/C) Σ_c log p_c``, both sums over valid pixels. N counts the valid
    pixels, N_r those of images whose ``image_weight`` is not 0; weights never enter the counts. Matches the
    MRKLD objective of CRST. With every image regularised it equals ``(1 + α)`` times cross entropy with label
    smoothing ``α / (1 + α)``, α = ``weight``.

    Args:
        logits: (B, C, H, W), any floating-point dtype and memory layout. The only argument gradients are sure
            to reach; ``pixel_weight`` and ``image_weight`` get theirs if they require it, labels never.
        labels: (B, H, W) integers in [0, C) or ``ignore_index``; or soft labels (B, C, H, W), floating point,
            not negative, a pixel's zero vector meaning ignored. Soft labels of ``select_soft`` make this MRKLD
            on top of LRENT.
        weight: α, not negative. CRST: 0.1. At 0 the regulariser is not computed.
        image_weight: (B,) weight of the regulariser for each image; None is 1. CRST: 0 for source images.
        pixel_weight: (B, H, W) factor of a pixel's cross entropy and regulariser; None is 1.
        ignore_index: label of the pixels that take part in nothing; not used with soft labels.
        reduction: "mean" as above; "sum" without the divisions; "none" for the map whose sum that is.

    Returns:
        Scalar, or (B, H, W) for "none", in float32 (float64 for float64 logits). Without any valid pixel exactly
        0 with gradients of exactly 0.

    State / distributed: none; counts are those of the process, as in ``torch.nn.functional.cross_entropy``.

    Raises:
        TypeError: ``logits`` is not floating point, ``labels`` neither integer nor floating point, ``weight`` is
            no number, or a weight is no tensor.
        ValueError: a shape or device does not fit ``logits``, ``weight`` is negative, or ``reduction`` is
            unknown. Labels outside [0, C), or negative soft labels, only inside ``value_checks()``.

    References:
        CRST (Zou et al., Confidence Regularized Self-Training, ICCV 2019, arXiv 1908.09822).

    Example:
        >>> import torch
        >>> logits = torch.tensor([3.0, 1.0]).log().reshape(1, 2, 1, 1)  # p = (3/4, 1/4)
        >>> mrkld_loss(logits, torch.tensor([[[0]]]), weight=0.5)  # ln 4/3 + 0.5 · (ln 4/3 + ln 4) / 2
        tensor(0.7062)
    """
    return _regularized(logits, labels, "kld", 1.0, weight, image_weight, pixel_weight, ignore_index, reduction)


def mrent_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    weight: float = 0.1,
    image_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> Tensor:
    """Compute cross entropy minus the entropy of the prediction (MRENT).

    ``(1/N) Σ -log p_y + weight · (1/N_r) Σ Σ_c p_c log p_c``: the regulariser is lowest, ``-log C``, at uniform.
    Matches the MRENT objective of CRST. Arguments, counts, results and errors are those of ``mrkld_loss``.

    Args:
        logits: (B, C, H, W), any floating-point dtype and memory layout.
        labels: (B, H, W) integers, or soft labels (B, C, H, W).
        weight: α, not negative.
        image_weight: (B,) weight of the regulariser for each image.
        pixel_weight: (B, H, W) factor of each pixel.
        ignore_index: label of the pixels that take part in nothing.
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
        >>> mrent_loss(torch.zeros(1, 4, 1, 1), torch.tensor([[[0]]]), weight=0.5)  # ln 4 - 0.5 · ln 4
        tensor(0.6931)
    """
    return _regularized(logits, labels, "entropy", -1.0, weight, image_weight, pixel_weight, ignore_index, reduction)


def mrl2_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    weight: float = 0.1,
    image_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> Tensor:
    """Compute cross entropy plus the squared length of the predicted probabilities (MRL2).

    ``(1/N) Σ -log p_y + weight · (1/N_r) Σ Σ_c p_c²``: the regulariser is lowest, ``1/C``, at uniform. Matches
    the MRL2 objective of CRST. Arguments, counts, results and errors are those of ``mrkld_loss``.

    Args:
        logits: (B, C, H, W), any floating-point dtype and memory layout.
        labels: (B, H, W) integers, or soft labels (B, C, H, W).
        weight: α, not negative.
        image_weight: (B,) weight of the regulariser for each image.
        pixel_weight: (B, H, W) factor of each pixel.
        ignore_index: label of the pixels that take part in nothing.
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
        >>> mrl2_loss(torch.zeros(1, 4, 1, 1), torch.tensor([[[0]]]), weight=0.5)  # ln 4 + 0.5 · 4 · (1/4)²
        tensor(1.5113)
    """
    return _regularized(logits, labels, "square", 1.0, weight, image_weight, pixel_weight, ignore_index, reduction)


def _regularized(
    logits: Tensor,
    labels: Tensor,
    kind: str,
    sign: float,
    weight: float,
    image_weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    _checks.check_logits(logits)
    if isinstance(labels, Tensor) and labels.is_floating_point():
        if labels.ndim == 3:
            expected = "an integer dtype, or soft labels (B, C, H, W)"
            raise TypeError(f"`labels`: expected {expected}, got {tuple(labels.shape)} of {labels.dtype}")
        _checks.check_class_maps(labels, logits, "labels")
    else:
        _checks.check_labels(labels, logits, ignore_index)
    _check_settings(weight, reduction)
    if image_weight is not None:
        _checks.check_image_values(image_weight, logits, "image_weight")
    if pixel_weight is not None:
        _checks.check_map(pixel_weight, logits, "pixel_weight")

    kinds = ("nll", kind) if weight else ("nll",)  # 0 · inf is NaN: at weight 0 the regulariser is left out
    valid, *maps = pixel_maps(logits, labels, *kinds, ignore_index=ignore_index)
    terms = [Term(1.0, weigh(maps[0], pixel_weight, valid), valid.sum())]
    if weight:
        regularised, values = valid, weigh(maps[1], pixel_weight, valid)
        if image_weight is not None:
            scale = image_weight[:, None, None].to(values.dtype)
            regularised = valid & (scale != 0)
            values = torch.where(regularised, values, 0) * scale
        terms.append(Term(sign * weight, values, regularised.sum()))
    return reduce(terms, reduction)


def _check_settings(weight: float, reduction: str) -> None:
    _checks.check_real(weight, "weight", 0.0, math.inf)
    _checks.check_choice(reduction, "reduction", REDUCTIONS)


class _RegularizedLoss(LossModule):
    _function = staticmethod(mrkld_loss)

    def __init__(self, *, weight: float = 0.1, ignore_index: int = IGNORE_INDEX, reduction: str = "mean") -> None:
        super().__init__()
        _check_settings(weight, reduction)
        self.weight = weight
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        image_weight: Tensor | None = None,
        pixel_weight: Tensor | None = None,
    ) -> Tensor:
        """Call the function of the same name with this module's settings."""
        return self._function(
            logits,
            labels,
            weight=self.weight,
            image_weight=image_weight,
            pixel_weight=pixel_weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


class MRKLDLoss(_RegularizedLoss):
    """``mrkld_loss`` with its settings kept: ``MRKLDLoss(weight=0.1)(logits, labels)``."""


class MRENTLoss(_RegularizedLoss):
    """``mrent_loss`` with its settings kept: ``MRENTLoss(weight=0.1)(logits, labels)``."""

    _function = staticmethod(mrent_loss)


class MRL2Loss(_RegularizedLoss):
    """``mrl2_loss`` with its settings kept: ``MRL2Loss(weight=0.1)(logits, labels)``."""

    _function = staticmethod(mrl2_loss)
