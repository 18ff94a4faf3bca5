"""Cross entropy with pseudo-labels, hard or soft."""

from __future__ import annotations

from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg.losses._arguments import check_target, divide_by
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["cross_entropy"]


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    normalize: str = "labelled",
    valid: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> Tensor:
    """Compute cross entropy with hard or soft labels, over labelled pixels or over all.

    ``(1/D) Σ_labelled w · -log p_y``, for soft labels ``-Σ_c y_c log p_c``, where D is

    - "labelled": the number of labelled pixels. CBST, CRST (LRENT: soft labels), IAST, DST-CBC.
    - "all": the number of pixels, B·H·W, or of those in ``valid``. FixMatch, UniMatch, FreeMatch, SoftMatch and the
      positive loss of DT-ST; the fewer pixels are sure, the less they count.

    Weights never enter D. Soft labels that do not sum to 1 are taken as they are.

    Args:
        logits: (B, C, H, W), any floating-point dtype and memory layout. The only argument gradients are sure
            to reach; ``pixel_weight`` gets one if it requires it, labels never.
        labels: (B, H, W) integers in [0, C) or ``ignore_index``; or soft labels (B, C, H, W), floating point,
            not negative, a pixel's zero vector meaning ignored, such as those of ``select_soft``.
        pixel_weight: (B, H, W) w; None is 1.
        normalize: "labelled" or "all", what ``reduction="mean"`` divides by.
        valid: (B, H, W) bool, with "all" only: the pixels that count, all but padding, say. Pixels that are labelled
            outside of it still take part, so give it to the selector, too.
        ignore_index: label of the pixels that take part in nothing; not used with soft labels.
        reduction: "mean" as above; "sum" without the division; "none" for the map whose sum that is.

    Returns:
        Scalar, or (B, H, W) for "none", in float32 (float64 for float64 logits). Without any labelled pixel exactly
        0 with gradients of exactly 0.

    State / distributed: none; counts are those of the process, as in ``torch.nn.functional.cross_entropy``.

    Raises:
        TypeError: ``logits`` is not floating point, ``labels`` neither integer nor floating point, ``valid`` not
            bool, or ``pixel_weight`` no tensor.
        ValueError: a shape or device does not fit ``logits``, ``normalize`` or ``reduction`` is unknown, or ``valid``
            comes with "labelled". Labels outside [0, C), or negative soft labels, only inside ``value_checks()``.

    References:
        CBST (Zou et al., ECCV 2018); CRST's LRENT (Zou et al., ICCV 2019); FixMatch (Sohn et al., NeurIPS 2020);
        UniMatch (Yang et al., CVPR 2023).

    Example:
        >>> import torch
        >>> labels = torch.tensor([[[0, 255, 255, 255]]])
        >>> cross_entropy(torch.zeros(1, 2, 1, 4), labels)  # ln 2
        tensor(0.6931)
        >>> cross_entropy(torch.zeros(1, 2, 1, 4), labels, normalize="all")  # ln 2 / 4
        tensor(0.1733)
    """
    check_target(logits, labels, ignore_index, pixel_weight)
    _checks.check_valid(valid, logits)
    if valid is not None and normalize != "all":
        raise ValueError(f"`valid`: expected normalize='all', which it is for, got {normalize!r}")
    divide = divide_by(normalize, reduction)
    return ops.weighted_loss(
        logits,
        labels,
        pixel_weight=pixel_weight,
        divisor=valid.sum() if valid is not None and divide == "all" else None,
        normalize=divide,
        ignore_index=ignore_index,
    )
