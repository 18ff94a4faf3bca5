"""Predictions averaged over scales and mirror images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from selftrain_seg import _checks
from selftrain_seg.outputs import find

__all__ = ["fuse_views"]


def fuse_views(
    model: Callable[[Tensor], Any],
    images: Tensor,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = True,
    align_corners: bool = False,
) -> Tensor:
    """Average a network's probabilities over several scales of the images and their mirror images.

    ``p = mean_v softmax(resize(model(view_v(x))))``: the logits of each view are mirrored back, resized to the size of
    the images and normalised; probabilities, not logits, are averaged. Pass ``p.log()`` to thresholds and selectors.

    Args:
        model: maps images (B, 3, h, w) to logits (B, C, h', w') of any resolution, or to an output that
            ``selftrain_seg.as_logits`` reads. Its mode is not changed: call ``eval()`` first. If the network only
            accepts certain sizes, wrap it with ``selftrain_seg.pad_to_multiple``.
        images: (B, 3, H, W), floating point, or any number of channels that the model accepts.
        scales: factors of height and width, above 0; sizes are rounded. CRST: (0.9, 1.0, 1.2), and it averages logits.
            IAST: (0.5, 0.625, 0.75, 0.879, 1.0), widths of 1,024 to 2,048 on Cityscapes.
        flip: whether to add the mirror image of each scale, left to right. CRST: True, IAST: False.
        align_corners: passed to ``torch.nn.functional.interpolate`` when images and logits are resized. Many published
            segmentation networks were trained with True.

    Returns:
        (B, C, H, W) float32 probabilities that sum to 1; no gradient.

    Raises:
        TypeError: ``images`` is not a floating-point tensor, a scale is not a number, or ``model`` returns no logits.
        ValueError: ``images`` does not have four dimensions, ``scales`` is empty or not above 0, or the logits are not
            (B, C, h, w) with the same B and at least two classes, or ``model`` returns several tensors.

    References:
        Test-time fusion of CRST (Zou et al., ICCV 2019) and IAST (Mei et al., ECCV 2020).

    Example:
        >>> import torch
        >>> model = torch.nn.Conv2d(3, 2, 3, stride=2, padding=1).eval()
        >>> fuse_views(model, torch.rand(1, 3, 33, 65), scales=(0.5, 1.0)).shape
        torch.Size([1, 2, 33, 65])
    """
    _checks.check_images(images)
    if not scales:
        raise ValueError("`scales`: expected at least one, got none")
    for scale in scales:
        _checks.check_real(scale, "scales", 0.0, float("inf"), open_low=True)
    size = images.shape[-2:]
    total = torch.zeros((), device=images.device)
    for scale in scales:
        view_size = [max(1, round(side * scale)) for side in size]
        view = images.detach() if list(size) == view_size else _resize(images.detach(), view_size, align_corners)
        for mirrored in (False, True) if flip else (False,):
            with torch.no_grad():
                logits = find(model(view.flip(-1) if mirrored else view))
            _checks.check_logits(logits, name="model(images)")
            if logits.shape[0] != images.shape[0]:
                raise ValueError(f"`model(images)`: expected a batch of {images.shape[0]}, got {logits.shape[0]}")
            logits = logits.flip(-1).float() if mirrored else logits.float()
            probs = _resize(logits, list(size), align_corners).softmax(dim=1)
            total = total + probs
    return total / (len(scales) * (2 if flip else 1))


def _resize(tensor: Tensor, size: list[int], align_corners: bool) -> Tensor:
    if list(tensor.shape[-2:]) == size:
        return tensor
    return F.interpolate(tensor, size=size, mode="bilinear", align_corners=align_corners)
