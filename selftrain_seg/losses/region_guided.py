"""Cross entropy with a regulariser for labelled and another for ignored pixels (IAST)."""

from __future__ import annotations

import math

from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.losses._core import pixel_maps
from selftrain_seg.losses._module import LossModule
from selftrain_seg.losses._reduce import REDUCTIONS, Term, reduce, weigh
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["RegionGuidedLoss", "region_guided_loss"]

_NORMALIZE = ("elements", "pixels")


def region_guided_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    confident_weight: float = 0.1,
    ignored_weight: float = 3.0,
    normalize: str = "elements",
    pixel_weight: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> Tensor:
    """Compute cross entropy, kept from overconfidence where labelled and from indecision where not (IAST).

    ``(1/N) Σ_labelled -log p_y + λ_c · mean_labelled(K) + λ_i · mean_ignored(E)`` with
    ``K = -(1/C) Σ_c log p_c`` (divergence from uniform, up to a constant) and ``E = -Σ_c p_c log p_c`` (entropy).
    With N labelled and M ignored pixels the two means divide by

    - "elements": C·N and C·M, as the published code does; the defaults 0.1 and 3.0 belong to this.
    - "pixels": N and M, as the paper's equations do. The same loss then has weights C times smaller.

    Args:
        logits: (B, C, H, W), any floating-point dtype and memory layout. The only argument gradients are sure
            to reach; ``pixel_weight`` gets one if it requires it.
        labels: (B, H, W) integers in [0, C) or ``ignore_index``. Every ignored pixel takes part in the entropy,
            padding too: give that ``pixel_weight`` 0.
        confident_weight: λ_c, not negative. IAST: 0.1.
        ignored_weight: λ_i, not negative. IAST: 3.0. At 0 ignored pixels take part in nothing.
        normalize: what the regularisers' means divide by; only ``reduction="mean"`` divides.
        pixel_weight: (B, H, W) factor of all that a pixel contributes; None is 1. Does not enter N and M.
        ignore_index: label of the ignored pixels.
        reduction: "mean" as above; "sum" without the divisions; "none" for the map whose sum that is.

    Returns:
        Scalar, or (B, H, W) for "none", in float32 (float64 for float64 logits). An empty region contributes
        exactly 0.

    Raises:
        TypeError: ``logits`` is not floating point, ``labels`` not integer, a weight no number, or
            ``pixel_weight`` no tensor.
        ValueError: a shape or device does not fit ``logits``, a weight is negative, or ``normalize`` or
            ``reduction`` is unknown. Labels outside [0, C), only inside ``value_checks()``.

    References:
        IAST (Mei et al., Instance Adaptive Self-Training, ECCV 2020, arXiv 2008.12197), region-guided
        regularisation.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log().reshape(1, 2, 1, 2)  # p = (3/4, 1/4), (1/2, 1/2)
        >>> labels = torch.tensor([[[0, 255]]])
        >>> region_guided_loss(logits, labels, confident_weight=1.0, ignored_weight=1.0, normalize="pixels")
        tensor(1.8178)
        >>> # ln 4/3 + (ln 4/3 + ln 4) / 2 + ln 2
    """
    _checks.check_logits(logits)
    _checks.check_labels(labels, logits, ignore_index)
    _check_settings(confident_weight, ignored_weight, normalize, reduction)
    if pixel_weight is not None:
        _checks.check_map(pixel_weight, logits, "pixel_weight")

    kinds = ["nll"]  # 0 · inf is NaN: at weight 0 a regulariser is left out
    if confident_weight:
        kinds.append("kld")
    if ignored_weight:
        kinds.append("ignored_entropy")
    valid, *maps = pixel_maps(logits, labels, *kinds, ignore_index=ignore_index)
    factors = {"nll": 1.0, "kld": confident_weight, "ignored_entropy": ignored_weight}
    terms = []
    for kind, values in zip(kinds, maps, strict=True):
        region = ~valid if kind == "ignored_entropy" else valid
        elements = logits.shape[1] if normalize == "elements" and kind != "nll" else 1
        terms.append(Term(factors[kind], weigh(values, pixel_weight, region), region.sum() * elements))
    return reduce(terms, reduction)


def _check_settings(confident_weight: float, ignored_weight: float, normalize: str, reduction: str) -> None:
    _checks.check_real(confident_weight, "confident_weight", 0.0, math.inf)
    _checks.check_real(ignored_weight, "ignored_weight", 0.0, math.inf)
    _checks.check_choice(normalize, "normalize", _NORMALIZE)
    _checks.check_choice(reduction, "reduction", REDUCTIONS)


class RegionGuidedLoss(LossModule):
    """``region_guided_loss`` with its settings kept: ``RegionGuidedLoss(ignored_weight=3.0)(logits, labels)``."""

    def __init__(
        self,
        *,
        confident_weight: float = 0.1,
        ignored_weight: float = 3.0,
        normalize: str = "elements",
        ignore_index: int = IGNORE_INDEX,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        _check_settings(confident_weight, ignored_weight, normalize, reduction)
        self.confident_weight = confident_weight
        self.ignored_weight = ignored_weight
        self.normalize = normalize
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, logits: Tensor, labels: Tensor, *, pixel_weight: Tensor | None = None) -> Tensor:
        """Call ``region_guided_loss`` with the settings of this module."""
        return region_guided_loss(
            logits,
            labels,
            confident_weight=self.confident_weight,
            ignored_weight=self.ignored_weight,
            normalize=self.normalize,
            pixel_weight=pixel_weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )
