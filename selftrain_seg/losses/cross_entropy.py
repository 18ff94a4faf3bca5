"""Cross entropy with hard or soft pseudo-labels."""

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
    """Compute cross entropy with hard or soft labels.

    ``(1/D) Σ_labelled w · -log p_y``, or for soft labels ``(1/D) Σ_labelled w · -Σ_c y_c log p_c``, where D is

    - "labelled": the number of labelled pixels. CBST, CRST (LRENT: soft labels), IAST, DST-CBC.
    - "all": the number of pixels, B·H·W, or of those in ``valid``. FixMatch, UniMatch, FreeMatch, SoftMatch and the
      positive loss of DT-ST. The fewer pixels are labelled, the smaller the loss.

    Weights do not change D. Soft labels are not normalised.

    Args:
        logits: (B, C, H, W), any floating-point dtype and memory layout. Gradients flow to it, and to ``pixel_weight``
            if it requires a gradient, never to labels.
        labels: (B, H, W) integers in [0, C) or ``ignore_index``; or soft labels (B, C, H, W), floating point, not
            negative, such as those of ``select_soft``. Pixels with a zero vector are ignored.
        pixel_weight: (B, H, W) w; None is 1.
        normalize: "labelled" or "all", the divisor of ``reduction="mean"``.
        valid: (B, H, W) bool, only with "all": the pixels that D counts, for example all except padding. Labelled
            pixels outside ``valid`` still contribute, so pass it to the selector too.
        ignore_index: label of pixels that do not contribute; not used with soft labels.
        reduction: "mean" as above; "sum" does not divide; "none" returns the map that "sum" adds up.

    Returns:
        Scalar, or (B, H, W) for "none", in float32 (float64 for float64 logits). Without a labelled pixel the loss and
        its gradients are exactly 0.

    State / distributed: none; D counts the pixels of this process, as in ``torch.nn.functional.cross_entropy``.

    Raises:
        TypeError: ``logits`` is not floating point, ``labels`` is neither integer nor floating point, ``valid`` is not
            bool, or ``pixel_weight`` is not a tensor.
        ValueError: a shape or device does not match ``logits``, ``normalize`` or ``reduction`` is unknown, or ``valid``
            is given with "labelled". Inside ``value_checks()``: labels outside [0, C), or negative soft labels.

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
        raise ValueError(f"`normalize`: expected 'all' with `valid`, got {normalize!r}")
    divide = divide_by(normalize, reduction)
    return ops.weighted_loss(
        logits,
        labels,
        pixel_weight=pixel_weight,
        divisor=valid.sum() if valid is not None and divide == "all" else None,
        normalize=divide,
        ignore_index=ignore_index,
    )
