"""How far a network agrees with itself on the mirror image."""

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
    """Measure on what share of the pixels a network gives the image and its mirror image the same class.

    A score without labels: the higher, the better the network, as far as its mistakes do not repeat themselves. The
    agreement of each class is what ``AgreementStatistics`` counts of the two outputs.

    Args:
        model: maps images to logits of any resolution, or to what ``selftrain_seg.as_logits`` finds them in. Used as it
            is: put it into ``eval()`` mode before.
        images: (B, D, H, W), floating point.

    Returns:
        () float32 in [0, 1], of the pixels of the logits; those with a NaN logit in either are left out, and without
        any other it is NaN.

    Raises:
        TypeError: ``images`` is no floating-point tensor, or the model returns no logits.
        ValueError: ``images`` is not (B, D, H, W), or the model returns no (B, C, h, w), or several.

    Example:
        >>> import torch
        >>> images = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).reshape(1, 1, 1, 4)
        >>> position = torch.arange(4.0).reshape(1, 1, 1, 4)  # of which the mirror image knows nothing
        >>> def model(x):
        ...     return torch.cat([x, 2 + 0 * position], dim=1)  # what a pixel shows counts
        >>> flip_agreement(model, images)
        tensor(1.)
        >>> def model(x):
        ...     return torch.cat([0 * x + position, 0 * x + 1.5], dim=1)  # where it is counts
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
