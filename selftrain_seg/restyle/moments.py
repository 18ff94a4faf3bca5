"""Match of channel means and standard deviations between images."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.ops.precision import as_given
from selftrain_seg.restyle._arguments import centred, check_pair, finish, wide

__all__ = ["match_moments"]


def match_moments(images: Tensor, style: Tensor, *, space: str = "rgb", clip: bool = False) -> Tensor:
    """Match the mean and standard deviation of each channel of each image to those of another image.

    ``(x - mean(x)) / std(x) * std(y) + mean(y)``, over the pixels of each image and channel. This is Reinhard's colour
    transfer, and AdaIN applied to the image. Nothing moves in the image, so its labels stay valid.

    Args:
        images: (B, D, H, W), floating point. With ``space="rgb"``, any D and any range, including normalised images;
            with ``"lab"``, RGB in [0, 1]. Not changed.
        style: (B, D, h, w), one style per image, of any size.
        space: ``"rgb"`` matches the channels of the images. ``"lab"`` matches the channels of CIE Lab and needs RGB
            images; Reinhard uses a related space. On a GPU the host waits with ``"lab"``.
        clip: whether to clip the result to [0, 1]. Its mean and deviation then match those of ``style`` only
            approximately.

    Returns:
        (B, D, H, W) in the dtype of ``images``; half precision is computed in float32. A constant channel becomes the
        mean of the style channel. Non-finite values of ``images`` are kept and do not count. A style channel without a
        finite value gives NaN.

    Raises:
        TypeError: a batch is not a floating-point tensor (divide 8-bit images by 255).
        ValueError: a batch is not (B, D, H, W) with at least one pixel; B, D or the device differ; ``space`` is
            unknown, or ``"lab"`` with D other than 3.

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
            f"`space`: expected 'rgb' for images of {images.shape[1]} channels, got 'lab', which needs RGB images"
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
