"""Cross entropy with model regularisation (CRST): MRKLD, MRENT, MRL2, on hard or soft labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from selftrain_seg._checks import check_choice, check_image_values, check_labels, check_logits, check_map, check_real
from selftrain_seg.losses._core import pixel_maps

__all__ = ["MRKLDLoss", "mrkld_loss"]


def mrkld_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    weight: float = 0.1,
    image_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    ignore_index: int = 255,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy plus the divergence of the prediction from uniform (MRKLD)."""
    return _regularized(logits, labels, "kld", 1.0, weight, image_weight, pixel_weight, ignore_index, reduction)


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
    check_logits(logits)
    check_labels(labels, logits, ignore_index)
    check_real(weight, "weight", 0.0, math.inf)
    if image_weight is not None:
        check_image_values(image_weight, logits, "image_weight")
    if pixel_weight is not None:
        check_map(pixel_weight, logits, "pixel_weight")
    check_choice(reduction, "reduction", ("none", "mean", "sum"))
    kinds = ("nll", kind) if weight else ("nll",)
    maps = pixel_maps(logits, labels, *kinds, ignore_index=ignore_index)
    ce, reg = maps.nll, getattr(maps, kind)
    if pixel_weight is not None:
        pw = torch.where(maps.valid, pixel_weight, 0).to(ce.dtype)
        ce = ce * pw
        reg = None if reg is None else reg * pw
    regularised = maps.valid
    if image_weight is not None and reg is not None:
        w = image_weight[:, None, None].to(reg.dtype)
        regularised = maps.valid & (w != 0)
        reg = torch.where(regularised, reg, 0) * w
    if reduction == "none":
        return ce if reg is None else ce + sign * weight * reg
    if reduction == "sum":
        return ce.sum() if reg is None else ce.sum() + sign * weight * reg.sum()
    loss = ce.sum() / maps.valid.sum().clamp(min=1)
    if reg is None:
        return loss
    return loss + sign * weight * (reg.sum() / regularised.sum().clamp(min=1))


class MRKLDLoss(nn.Module):
    pass
