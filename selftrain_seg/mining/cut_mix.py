"""CutMix: paste a box of one image onto another."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.mining.mixed import MixedBatch, blend, check_batch, check_neighbours
from selftrain_seg.ops.random import check_generator, uniform
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["cut_mix"]


def cut_mix(
    images: Tensor,
    labels: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    source: tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor | None] | None = None,
    alpha: float = 1.0,
    area: tuple[float, float] | None = None,
    paste_ignored: bool = False,
    ignore_index: int = IGNORE_INDEX,
    generator: torch.Generator | None = None,
) -> MixedBatch:
    """Paste a box of another image onto each image of a batch, at the same position.

    The share of the image that the box covers is drawn for each image from ``Beta(alpha, alpha)``, or uniformly
    from the range ``area``. The box has the proportions of the image: its sides are ``sqrt(share)`` of height and
    width, rounded to whole pixels. Its position is uniform inside the image. Differs from the paper, which cuts off
    a box that sticks out and so covers less than the drawn share. No host synchronisation.

    Args:
        images: (B, D, H, W), any dtype: the images pasted onto; gradients flow.
        labels: (B, H, W), integer: their labels or pseudo-labels.
        pixel_weight: (B, H, W), floating point: their pixel weights in the loss; None for none.
        source: (images, labels) or (images, labels, pixel_weight) to paste from, of the same shapes and dtypes. None
            takes the batch itself, shifted by one: image b gets a box of image b + 1, and the last image a box of the
            first. If only one of the two has weights, those of the other are 1.
        alpha: above 0; 1 in CutMix, which makes the share uniform.
        area: (low, high) in [0, 1], the range of a uniform share; None for the Beta distribution. (0.02, 0.4) in
            UniMatch, (0.5, 0.5) in CutMix-Seg.
        paste_ignored: whether pixels labelled ``ignore_index`` are pasted too. False keeps the image there, so that
            a box never pastes padding.
        ignore_index: label of the pixels without a class.
        generator: source of the random numbers, on the device of ``images``; None for torch's default one.

    Returns:
        The mixed batch, in the order of ``images``; a copy.

    Raises:
        TypeError: ``images`` is not a tensor, ``labels`` is not an integer tensor or ``pixel_weight`` is not a
            floating-point tensor, likewise for ``source``; ``alpha`` or an end of ``area`` is not a number.
        ValueError: ``images`` is not (B, D, H, W); ``labels`` or ``pixel_weight`` does not fit it or has no pixels;
            ``source`` is not two or three tensors of the same shapes and dtypes, or is None for a batch of one
            image; ``alpha`` is not above 0; ``area`` is not (low, high) with 0 ≤ low ≤ high ≤ 1; a tensor or the
            generator is on another device.

    References:
        Yun et al., CutMix, ICCV 2019, arXiv:1905.04899. French et al., Semi-supervised semantic segmentation needs
        strong, varied perturbations, BMVC 2020, arXiv:1906.01916.

    Example:
        >>> import torch
        >>> from selftrain_seg.mining import cut_mix
        >>> labels = torch.tensor([0, 1])[:, None, None].expand(2, 8, 8)
        >>> mixed = cut_mix(torch.zeros(2, 3, 8, 8), labels, area=(0.25, 0.25))
        >>> mixed.labels.sum((1, 2))  # a box of 4 × 4 ones, and one of zeros
        tensor([16, 48])
    """
    others = check_batch(images, labels, pixel_weight, source)
    check_neighbours(images, source)
    _checks.check_real(alpha, "alpha", 0.0, math.inf, open_low=True)
    if area is not None:
        if not isinstance(area, (tuple, list)) or len(area) != 2:
            raise ValueError(f"`area`: expected (low, high), got {area!r}")
        _checks.check_real(area[0], "area[0]", 0.0, 1.0)
        _checks.check_real(area[1], "area[1]", float(area[0]), 1.0)
    check_generator(generator, images)
    batch, height, width = labels.shape
    draws = uniform((batch, 4), images.device, generator, torch.float64)
    share = _beta(draws[:, 0], draws[:, 1], alpha)
    if area is not None:
        share = area[0] + (area[1] - area[0]) * draws[:, 0]
    side = share.sqrt()
    rows = _interval(height, side, draws[:, 2])
    columns = _interval(width, side, draws[:, 3])
    pasted = rows[:, :, None] & columns[:, None, :]
    if not paste_ignored:
        pasted = pasted & (others[1].long() != ignore_index)  # in uint8, -1 is 255
    return blend((images, labels, pixel_weight), others, pasted)


def _interval(length: int, side: Tensor, place: Tensor) -> Tensor:
    """(B, length) bool: an interval that covers the share ``side`` of the length, uniformly placed inside it."""
    size = (length * side).round()
    start = (place * (length - size + 1)).floor()
    at = torch.arange(length, device=side.device)
    return (at >= start[:, None]) & (at < (start + size)[:, None])


def _beta(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    """Beta(alpha, alpha) from two uniform numbers: (1 + t / sqrt(2·alpha + t²)) / 2 with t of Student's distribution.

    Bailey's polar form of t with 2·alpha degrees of freedom is ``sqrt(2·alpha·(u^(-1/alpha) - 1))·cos(2πv)``.
    """
    power = (1 - first).pow(1 / alpha)  # 1 - first is in (0, 1]
    wave = (1 - power).sqrt() * (2 * math.pi * second).cos()
    ratio = wave / (power + wave.square()).sqrt().clamp(min=1e-300)
    return ((1 + ratio) / 2).clamp(0, 1)
