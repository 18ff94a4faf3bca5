"""Agreement of a network's outputs for an image and its mirror image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg.outputs import find

__all__ = ["flip_agreement"]


@torch.no_grad()
def flip_agreement(model: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    """Measure the share of pixels that a network gives the same class in an image and in its mirror image.

    A score without labels: higher is better. It does not detect mistakes that the network also makes in the mirror
    image. For the agreement per class, pass the two outputs to ``AgreementStatistics``.

    Args:
        model: maps images to logits of any resolution, or to an output in which ``selftrain_seg.as_logits`` finds them.
            Put it into ``eval()`` mode first.
        images: (B, D, H, W), floating point.

    Returns:
        () float32 in [0, 1], over the pixels of the logits. Pixels with a NaN logit in either output are left out; NaN
        if none remains.

    Raises:
        TypeError: ``images`` is not a floating-point tensor, or the model returns no logits.
        ValueError: ``images`` is not (B, D, H, W), or the model does not return exactly one tensor (B, C, h, w).

    Example:
        >>> import torch
        >>> images = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).reshape(1, 1, 1, 4)
        >>> position = torch.arange(4.0).reshape(1, 1, 1, 4)  # does not change in the mirror image
        >>> def model(x):
        ...     return torch.cat([x, 2 + 0 * position], dim=1)  # depends on the content of a pixel
        >>> flip_agreement(model, images)
        tensor(1.)
        >>> def model(x):
        ...     return torch.cat([0 * x + position, 0 * x + 1.5], dim=1)  # depends on its position
        >>> flip_agreement(model, images)
        tensor(0.)
    """
    _checks.check_images(images)
    here, there = (find(model(view)) for view in (images, images.flip(-1)))
    for logits in (here, there):
        _checks.check_logits(logits, name="model(images)")
    one, two = ops.read(here), ops.read(there)
    mirrored, score = two.labels.flip(-1), two.score.flip(-1)
    known = ~(one.score.isnan() | score.isnan())
    return (known & (one.labels == mirrored)).sum() / known.sum()
