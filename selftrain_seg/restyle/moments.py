"""The colours of one image given the mean and the spread of another's."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.ops.precision import as_given
from selftrain_seg.restyle._arguments import centred, check_pair, finish, wide

__all__ = ["match_moments"]


def match_moments(images: Tensor, style: Tensor, *, space: str = "rgb", clip: bool = False) -> Tensor:
    """Give each channel of each image the mean and the standard deviation of another image's.

    ``(x - mean(x)) / std(x) * std(y) + mean(y)``, over the pixels of each image and channel: Reinhard's colour
    transfer, and AdaIN on the image itself. What the image shows stays where it is, so its labels stay right.

    Args:
        images: (B, D, H, W), floating point. Any D and any range with ``space="rgb"``, normalised images included;
            RGB in [0, 1] with ``"lab"``. Not changed.
        style: (B, D, h, w), one for each image; of any size.
        space: ``"rgb"`` takes the channels as they are. ``"lab"`` matches lightness and the two colour axes of CIE
            Lab, as Reinhard does in a relative of it, and needs three channels; it is computed by kornia.
        clip: whether results are cut to [0, 1]. The mean and deviation are then those of ``style`` only approximately.

    Returns:
        (B, D, H, W) in the dtype of ``images``; half precision is computed in float32. A constant channel becomes the
        mean of the style's. Values that are not finite do not count, and stay as they are in ``images``; a style
        without a finite value in a channel gives NaN there.

    Raises:
        TypeError: a batch is no floating-point tensor; 8-bit images have to be divided by 255.
        ValueError: a batch is not (B, D, H, W) with at least one pixel; B, D or the device differ; ``space`` is
            another, or ``"lab"`` and D is not 3.

    References:
        Reinhard et al., "Color Transfer between Images", IEEE Computer Graphics and Applications 2001, Eq. 10-11.
        Huang and Belongie, "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization", ICCV 2017,
        arXiv:1703.06868, Eq. 8.

    Example:
        >>> import torch
        >>> image = torch.tensor([0.2, 0.4]).reshape(1, 1, 1, 2)
        >>> style = torch.tensor([0.5, 0.5, 0.9, 0.9]).reshape(1, 1, 2, 2)
        >>> match_moments(image, style)  # mean 0.7, deviation 0.2
        tensor([[[[0.5000, 0.9000]]]])
    """
    check_pair(images, style)
    _checks.check_choice(space, "space", ("rgb", "lab"))
    if space == "lab" and images.shape[1] != 3:
        raise ValueError(
            f"`space`: expected 'rgb' for images of {images.shape[1]} channels, got 'lab', which is of RGB"
        )
    with as_given(images):
        source, target = wide(images), wide(style).to(wide(images).dtype)
        finite = images.isfinite()
        if space == "rgb":
            return finish(_matched(source, target), images, finite, clip)
        from kornia import color  # slow to import

        finite = finite.all(dim=1, keepdim=True)
        restyled = color.lab_to_rgb(_matched(color.rgb_to_lab(source), color.rgb_to_lab(target)), clip=False)
        return finish(restyled, images, finite, clip)


def _matched(images: Tensor, style: Tensor) -> Tensor:
    apart, _, finite = centred(images)
    style_apart, style_mean, style_finite = centred(style)
    spread, style_spread = _deviation(apart, finite), _deviation(style_apart, style_finite)
    factor = torch.where(spread > 0, style_spread / spread, 0.0)
    return torch.addcmul(style_mean, apart, factor)


def _deviation(apart: Tensor, finite: Tensor) -> Tensor:
    return (apart.square().sum((-2, -1), keepdim=True) / finite.sum((-2, -1), keepdim=True)).sqrt()
