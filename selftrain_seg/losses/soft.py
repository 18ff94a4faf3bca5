"""Cross entropy with soft labels (CRST's LRENT)."""

from __future__ import annotations

from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.losses._core import pixel_maps
from selftrain_seg.losses._module import LossModule
from selftrain_seg.losses._reduce import REDUCTIONS, Term, reduce, weigh

__all__ = ["LRENTLoss", "lrent_loss"]


def lrent_loss(logits: Tensor, soft: Tensor, *, pixel_weight: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """Compute cross entropy with soft labels, in which a zero vector means ignored.

    ``-(1/N) Σ Σ_c y_c log p_c`` over the N pixels whose soft label is not zero; weights do not enter N. Matches
    the LRENT objective of CRST for fixed labels (their regulariser does not depend on the network). Rows that
    do not sum to 1 are taken as they are. For MRKLD on top, give the same labels to ``mrkld_loss``.

    Args:
        logits: (B, C, H, W), any floating-point dtype and memory layout. The only argument gradients are sure
            to reach; ``pixel_weight`` gets one if it requires it, ``soft`` never.
        soft: (B, C, H, W) floating point, not negative, from ``select_soft``.
        pixel_weight: (B, H, W) factor of a pixel's cross entropy; None is 1.
        reduction: "mean" as above; "sum" without the division; "none" for the map whose sum that is.

    Returns:
        Scalar, or (B, H, W) for "none", in float32 (float64 for float64 logits). Without any valid pixel exactly
        0 with gradients of exactly 0.

    Raises:
        TypeError: ``logits`` or ``soft`` is no floating-point tensor, or ``pixel_weight`` no tensor.
        ValueError: a shape or device does not fit ``logits``, or ``reduction`` is unknown. Negative soft labels,
            only inside ``value_checks()``.

    References:
        CRST (Zou et al., Confidence Regularized Self-Training, ICCV 2019, arXiv 1908.09822).

    Example:
        >>> import torch
        >>> logits = torch.tensor([3.0, 1.0]).log().reshape(1, 2, 1, 1)  # p = (3/4, 1/4)
        >>> lrent_loss(logits, torch.tensor([0.5, 0.5]).reshape(1, 2, 1, 1))  # (ln 4/3 + ln 4) / 2
        tensor(0.8370)
    """
    _checks.check_logits(logits)
    _checks.check_class_maps(soft, logits, "soft")
    if pixel_weight is not None:
        _checks.check_map(pixel_weight, logits, "pixel_weight")
    _checks.check_choice(reduction, "reduction", REDUCTIONS)
    valid, nll = pixel_maps(logits, soft, "nll")
    return reduce([Term(1.0, weigh(nll, pixel_weight, valid), valid.sum())], reduction)


class LRENTLoss(LossModule):
    """``lrent_loss`` with its settings kept: ``LRENTLoss()(logits, soft)``."""

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        _checks.check_choice(reduction, "reduction", REDUCTIONS)
        self.reduction = reduction

    def forward(self, logits: Tensor, soft: Tensor, *, pixel_weight: Tensor | None = None) -> Tensor:
        """Call ``lrent_loss`` with the settings of this module."""
        return lrent_loss(logits, soft, pixel_weight=pixel_weight, reduction=self.reduction)
