"""Random scales, crops, mirroring and colours of training images, with their labels and maps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.views import mask_patches


def training_transform(
    size: Sequence[int],
    *,
    crop: Callable[..., Any] | None = None,
    scale: Sequence[float] = (1.0, 1.0),
    jitter: Sequence[float] = (0.2, 0.2, 0.2, 0.03),
) -> Callable[..., Any]:
    """Return a transform of (image, labels, further maps) or (image, name): scale, crop, mirroring and colours.

    Values keep their range. In the padding of a crop, labels are ``IGNORE_INDEX`` and further maps 0.

    Args:
        size: height and width of the crop.
        crop: replaces the random crop, for example by ``selftrain_seg.mining.SmallClassCrop``.
        scale: smallest and largest factor by which the image is resized before the crop.
        jitter: largest change of brightness, contrast, saturation and hue. In images whose channels are not colours,
            brightness and contrast change by the first number.
    """
    if crop is None:
        fill = {tv_tensors.Image: 0, tv_tensors.Mask: IGNORE_INDEX}
        crop = v2.RandomCrop(tuple(size), pad_if_needed=True, fill=fill)
    move, strength = v2.Compose([crop, v2.RandomHorizontalFlip()]), jitter[0]
    return functools.partial(_augment, tuple(scale), move, v2.ColorJitter(*jitter), strength)


def _augment(
    scale: tuple[float, float],
    move: Callable[..., Any],
    recolour: Callable[..., Any],
    strength: float,
    image: tv_tensors.Image,
    labels: Any,
    *maps: Tensor,
) -> tuple[Any, ...]:
    if isinstance(labels, Tensor):
        labels = tv_tensors.Mask(labels)
    if scale != (1.0, 1.0):
        factor = float(torch.empty(()).uniform_(*scale))
        size = [max(1, round(factor * side)) for side in image.shape[-2:]]
        image = TF.resize(image, size, antialias=True)
        labels = TF.resize(labels, size) if isinstance(labels, Tensor) else labels
        maps = tuple(TF.resize(tv_tensors.Mask(part), size).as_subclass(Tensor) for part in maps)
    # Maps are moved as images: the crop is placed by the only mask, and pads all others with 0.
    image, labels, *moved = move(image, labels, *(tv_tensors.Image(part) for part in maps))
    moved = [new.reshape(*old.shape[:-2], *new.shape[-2:]) for new, old in zip(moved, maps, strict=True)]
    parts = (recolour(image) if image.shape[0] in (1, 3) else relit(image, strength), labels, *moved)
    return tuple(part.as_subclass(Tensor) if isinstance(part, Tensor) else part for part in parts)


def mark_padding(transform: Callable[..., Any]) -> Callable[[Any, Any], tuple[Any, ...]]:
    """Return a transform of (image, name) into (image, map), whose map is 0, and 255 in the padding of the crop.

    Args:
        transform: made by :func:`training_transform`.
    """
    return functools.partial(_marked, transform)


def _marked(transform: Callable[..., Any], image: Tensor, _: Any) -> tuple[Any, ...]:
    return transform(image, torch.zeros(image.shape[-2:], dtype=torch.uint8))


def relit(image: Tensor, strength: float = 0.2) -> Tensor:
    """Randomly change brightness and contrast of each image (..., C, H, W), for channels that are not colours."""
    top = 1.0 if image.is_floating_point() else 255.0
    factors = 1 + strength * (2 * torch.rand(2, *image.shape[:-3], 1, 1, 1) - 1)
    brightness, contrast = factors.to(image.device)
    floats = image.float()
    mean = floats.mean(dim=(-3, -2, -1), keepdim=True)
    made = ((floats - mean) * contrast + mean * brightness).clamp(0, top)
    return made.to(image.dtype) if image.is_floating_point() else made.round().to(image.dtype)


def cut_squares(images: Tensor, chance: float, side: int = 32, share: float = 0.25) -> Tensor:
    """Make a share of the squares black, in each image (B, C, H, W) with the given chance."""
    cut = torch.rand(len(images), 1, 1, 1, device=images.device) < chance
    return torch.where(cut, mask_patches(images, side, share)[0], images)


def whole_image(size: Sequence[int], resize: Sequence[int] | None = None) -> Callable[[Any, Any], tuple[Tensor, Any]]:
    """Return a transform of (image, labels) or (image, name) into images of one size.

    Args:
        size: height and width to which images are cropped or padded.
        resize: height and width to which they are resized instead.
    """
    fill = {tv_tensors.Image: 0, tv_tensors.Mask: IGNORE_INDEX}
    crop = v2.RandomCrop(tuple(size), pad_if_needed=True, fill=fill)
    return functools.partial(_moved, crop if resize is None else v2.Resize(tuple(resize), antialias=True))


def _moved(move: Callable[..., Any], image: Tensor, labels: Any) -> tuple[Tensor, Any]:
    image, labels = move(image, tv_tensors.Mask(labels) if isinstance(labels, Tensor) else labels)
    return image.as_subclass(Tensor), labels.as_subclass(Tensor) if isinstance(labels, Tensor) else labels
