"""Average the outputs of several views of an image, mapped back to the full image (SAC)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.views.geometry import ViewParameters, replay_inverse

__all__ = ["average_views"]


def average_views(
    probs: Sequence[Tensor], parameters: Sequence[ViewParameters], *, mode: str | None = None
) -> tuple[Tensor, Tensor]:
    """Average the probabilities of several views of each image, mapped back to the full image.

    ``p = Σ_v s_v p_v / Σ_v s_v``, where p_v is ``replay_inverse`` of view v and s_v is 1 where view v shows the pixel,
    else 0. Views that are zoomed in resolve small objects; views that are zoomed out show their surroundings. Map the
    average to each view of the student with :func:`replay`. Only the sum and one view are in memory. No host
    synchronisation.

    Args:
        probs: for each view (B, C, h, w), floating point, of the size of that view: resize the network's output first.
            Views may differ in size.
        parameters: parameters of each view, for the same B images and the same image size.
        mode: as in ``replay_inverse``; None for bilinear.

    Returns:
        ``(average, seen)``: (B, C, H, W) in float32, or float64 if the first view is, and (B, H, W) bool, whether any
        view shows the pixel. Where none does, all probabilities are 0.

    Raises:
        TypeError: a member of ``probs`` is not a floating-point tensor, or one of ``parameters`` is not a
            ViewParameters.
        ValueError: there is no view; the two lists differ in length; a view is not (B, C, h, w) with the B, h and w of
            its parameters; views differ in B, C or image size.

    References:
        Araslanov and Roth, Self-supervised Augmentation Consistency for Adapting Semantic Segmentation, CVPR 2021,
        arXiv:2105.00097.

    Example:
        >>> import torch
        >>> from selftrain_seg.views import WeakStrongViews, average_views
        >>> images = torch.rand(1, 3, 1, 2)
        >>> whole = WeakStrongViews((1, 2), scale=(1.0, 1.0), flip_chance=0.0).draw(images)
        >>> part = WeakStrongViews((1, 1), scale=(1.0, 1.0), flip_chance=0.0).draw(images)
        >>> part = part._replace(corner=torch.tensor([[0, 1]]))  # the second pixel only
        >>> p = [torch.tensor([0.25, 0.5]).reshape(1, 1, 1, 2), torch.tensor([1.0]).reshape(1, 1, 1, 1)]
        >>> average, seen = average_views([torch.cat([q, 1 - q], dim=1) for q in p], [whole, part])
        >>> average[:, 0]
        tensor([[[0.2500, 0.7500]]])
    """
    _check_lists(probs, parameters)
    image_size = tuple(parameters[0].image_size)
    total = count = torch.zeros((), device=parameters[0].scaled.device)
    for number, (own, its_parameters) in enumerate(zip(probs, parameters, strict=True)):
        _checks.check_images(own, f"probs[{number}]")
        if own.shape[:2] != probs[0].shape[:2]:
            expected, got = tuple(probs[0].shape[:2]), tuple(own.shape[:2])
            raise ValueError(f"`probs[{number}]`: expected (B, C) = {expected} as of the first view, got {got}")
        if tuple(its_parameters.image_size) != image_size:
            raise ValueError(
                f"`parameters[{number}]`: expected an image size of {image_size} as of the first view, got"
                f" {tuple(its_parameters.image_size)}"
            )
        back, seen = replay_inverse(own, its_parameters, mode=mode, fill=0.0)
        total = total + back.to(torch.promote_types(probs[0].dtype, torch.float32))
        count = count + seen
    return total / count.clamp(min=1)[:, None], count > 0


def _check_lists(probs: Any, parameters: Any) -> None:
    for name, value in (("probs", probs), ("parameters", parameters)):
        if isinstance(value, (Tensor, ViewParameters)) or not isinstance(value, Sequence):
            raise TypeError(f"`{name}`: expected a list with an entry for each view, got {type(value).__name__}")
    if not probs or len(probs) != len(parameters):
        raise ValueError(
            f"`probs`: expected one view at least and as many as `parameters`, got {len(probs)} and {len(parameters)}"
        )
    for number, value in enumerate(parameters):
        if not isinstance(value, ViewParameters):
            raise TypeError(f"`parameters[{number}]`: expected ViewParameters, got {type(value).__name__}")
