"""Crops that favour small classes, drawn and cut for whole batches on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.mining.classes import class_numbers
from selftrain_seg.ops.labels import mine
from selftrain_seg.ops.random import check_generator, uniform_integers
from selftrain_seg.ops.windows import windows
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["crop", "mine_crops"]


def mine_crops(
    labels: Tensor,
    classes: Tensor,
    size: tuple[int, int],
    *,
    fallback: Tensor | None = None,
    image_counts: Tensor | None = None,
    chance: float = 0.8,
    ignore_index: int = IGNORE_INDEX,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one crop per image, with probability ``chance`` around a pixel of a small class.

    With probability ``chance`` the crop of an image is mined: one of the ``classes`` present in its labels is drawn
    uniformly, then one of the pixels of that class. The crop is centred on this pixel, which lands at row ``h // 2``
    and column ``w // 2``; a crop that would stick out is shifted back inside the image. Otherwise, or if the image
    shows none of the classes, the crop is drawn uniformly from all positions inside the image. Each image draws
    independently.

    CRST uses ``classes=classes_below(counts)``. CBST adds ``fallback=rare_classes(counts)`` for images without any
    of these.

    No host synchronisation; the number of operations is fixed.

    Args:
        labels: (B, H, W), integer; labels or pseudo-labels. Values outside [0, 65536) are never mined.
        classes: (K,) int64, on any device, the classes to mine; repeats count once, K may be 0.
        size: (h, w) of the crop in pixels.
        fallback: (F,) int64, on any device, the classes to mine in images that show none of ``classes``; None for none.
        image_counts: (B, C), integer: the number of pixels of each class in each image, such as rows of
            ``ClassIndex.counts``. It saves a pass over the labels; the result is the same.
        chance: probability of mining, in [0, 1]; 0.8 in CBST and CRST.
        ignore_index: never mined, even if it is among ``classes``.
        generator: source of the random numbers, on the device of ``labels``; None for torch's default one.

    Returns:
        (B, 2) int64 on the device of ``labels``: (top, left) of each crop, for :func:`crop`; 0 along a dimension
        in which the image is smaller than the crop.

    Raises:
        TypeError: ``labels``, ``classes``, ``fallback`` or ``image_counts`` is not an integer tensor; an
            element of ``size`` is not an int; ``chance`` is not a number.
        ValueError: ``labels`` is not (B, H, W) with H and W of at least 1; ``classes`` or ``fallback`` is not
            one-dimensional; ``size`` is not two values of at least 1; ``image_counts`` is not (B, C) with C of
            at least 1; ``chance`` is outside [0, 1]; a tensor or the generator is on another device.

    References:
        Zou et al., Unsupervised Domain Adaptation for Semantic Segmentation via Class-Balanced Self-Training,
        ECCV 2018, arXiv:1810.07911. Zou et al., Confidence Regularized Self-Training, ICCV 2019,
        arXiv:1908.09822.

    Example:
        >>> import torch
        >>> from selftrain_seg.mining import mine_crops
        >>> labels = torch.zeros(1, 6, 8, dtype=torch.long)
        >>> labels[0, 2, 5] = 7
        >>> mine_crops(labels, torch.tensor([7]), (4, 4), chance=1.0)  # pixel (2, 5) - (2, 2)
        tensor([[0, 3]])
    """
    _checks.check_label_maps(labels)
    batch, height, width = labels.shape
    if height == 0 or width == 0:
        raise ValueError(f"`labels`: expected at least one pixel per image, got {tuple(labels.shape)}")
    candidates = class_numbers(classes, labels, "classes")
    first = None if fallback is None else class_numbers(fallback, labels, "fallback")
    crop_height, crop_width = _checks.check_size(size)
    if image_counts is not None:
        _checks.check_integer(image_counts, "image_counts")
        if image_counts.ndim != 2 or image_counts.shape[0] != batch or image_counts.shape[1] == 0:
            raise ValueError(
                f"`image_counts`: expected (B, C) = ({batch}, C) with at least one class, "
                f"got {tuple(image_counts.shape)}"
            )
        _checks.check_device(image_counts, labels, "image_counts")
    _checks.check_real(chance, "chance", 0.0, 1.0)
    check_generator(generator, labels)

    candidates = candidates if first is None else torch.cat([first, candidates])
    draws = uniform_integers(batch, 4 + candidates.shape[0], labels.device, generator)
    ranked = _rank(candidates, 0 if first is None else first.shape[0], draws[:, 4:], ignore_index)
    return mine(labels, ranked, draws[:, :4], image_counts, (crop_height, crop_width), int(chance * 2**62))


def crop(tensor: Tensor, corners: Tensor, size: tuple[int, int], *, fill: float | None = None) -> Tensor:
    """Cut one crop per image out of a batch.

    Call it once for each tensor: images, labels, weights. An image that is smaller than the crop is padded at the
    bottom and on the right.

    Args:
        tensor: (B, …, H, W), any dtype; gradients flow through floating-point tensors.
        corners: (B, 2), integer: (top, left) of each crop, from :func:`mine_crops`. A crop that would stick
            out of the image is shifted back inside.
        size: (h, w) of the crop in pixels.
        fill: value of the padding. None means 255, the ignore label, for label maps (integer tensors (B, H, W) or
            (B, 1, H, W)), and 0 for all others.

    Returns:
        (B, …, h, w), dtype and device of ``tensor``, a copy. A channels_last batch stays channels_last.

    Raises:
        TypeError: ``tensor`` is not a tensor; ``corners`` is not an integer tensor; an element of ``size`` is
            not an int; ``fill`` is not a number.
        ValueError: ``tensor`` has fewer than 3 dimensions, or no pixels; ``corners`` is not (B, 2) or on
            another device; ``size`` is not two values of at least 1; the dtype of ``tensor`` cannot hold ``fill``.

    Example:
        >>> import torch
        >>> from selftrain_seg.mining import crop
        >>> labels = torch.arange(12).view(1, 3, 4)
        >>> crop(labels, torch.tensor([[1, 2]]), (2, 2))
        tensor([[[ 6,  7],
                 [10, 11]]])
        >>> crop(labels, torch.tensor([[0, 2]]), (4, 2))
        tensor([[[  2,   3],
                 [  6,   7],
                 [ 10,  11],
                 [255, 255]]])
    """
    _checks.check_tensor(tensor, "tensor")
    if tensor.ndim < 3 or 0 in tensor.shape[-2:]:
        raise ValueError(
            f"`tensor`: expected (B, …, H, W) with at least one pixel per image, got {tuple(tensor.shape)}"
        )
    _checks.check_integer(corners, "corners")
    if tuple(corners.shape) != (tensor.shape[0], 2):
        raise ValueError(f"`corners`: expected (B, 2) = ({tensor.shape[0]}, 2), got {tuple(corners.shape)}")
    _checks.check_device(corners, tensor, "corners")
    crop_height, crop_width = _checks.check_size(size)
    value = _checks.fill_value(tensor, fill)

    height, width = tensor.shape[-2:]
    inner_height, inner_width = min(crop_height, height), min(crop_width, width)
    top = corners[:, 0].clamp(0, height - inner_height)
    left = corners[:, 1].clamp(0, width - inner_width)
    inner = (inner_height, inner_width)
    out = windows(tensor, top, left, inner)
    if inner == (crop_height, crop_width):
        return out
    padding = (0, crop_width - inner_width, 0, crop_height - inner_height)
    return torch.constant_pad_nd(out, padding, value)


def _rank(candidates: Tensor, fallbacks: int, keys: Tensor, ignore_index: int) -> Tensor:
    """(B, K): the candidates of each image in the random order of ``keys``, the first ``fallbacks`` before the others.

    Later classes are preferred. Repeats and the ignore label are set to -1 and are never drawn.
    """
    repeated = (candidates[:, None] == candidates).triu(1).any(1)  # the last occurrence stays: it is the preferred one
    candidates = torch.where(repeated | (candidates == ignore_index), -1, candidates)
    preferred = torch.arange(candidates.shape[0], device=candidates.device) >= fallbacks
    return candidates[(keys + preferred * 2**62).argsort(1)]
