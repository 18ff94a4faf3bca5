"""Source images in the colours of target images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from selftrain_seg.restyle import match_moments, swap_amplitudes

_LEVELS = 256


def match_histograms(images: Tensor, style: Tensor) -> Tensor:
    """Give each channel of each image the histogram of another image. Both are uint8 (N, D, H, W).

    Each of the 256 levels becomes the value of ``style`` at the middle of its ranks, so equal pixels stay equal.
    """
    pixels = images.flatten(2).long()
    counts = torch.zeros(*pixels.shape[:2], _LEVELS).scatter_add_(2, pixels, torch.ones(pixels.shape))
    middle = (counts.cumsum(2) - counts / 2) / pixels.shape[2]
    values = style.flatten(2).sort(dim=2).values
    ranks = (middle * values.shape[2]).long().clamp(max=values.shape[2] - 1)
    return values.gather(2, ranks).gather(2, pixels).view_as(images)


def _as_bytes(restyle: Callable[[Tensor, Tensor], Tensor], images: Tensor, style: Tensor) -> Tensor:
    return (restyle(images.float() / 255, style.float() / 255) * 255).round().clamp(0, 255).byte()


# (uint8 images, one uint8 style per image) -> uint8 images
STYLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "moments": partial(_as_bytes, match_moments),
    "Fourier": partial(_as_bytes, swap_amplitudes),
    "histograms": match_histograms,
}


def restyle(images: Tensor, targets: Tensor, method: str, generator: torch.Generator | None = None) -> Tensor:
    """Restyle each image to a random target image; "mixed" draws the method of each image, or leaves it unchanged."""
    chosen = torch.randint(len(targets), (len(images),), generator=generator)
    if method != "mixed":
        return STYLES[method](images, targets[chosen])
    variants = [images, *(style(images, targets[chosen]) for style in STYLES.values())]
    drawn = torch.randint(len(variants), (len(images),), generator=generator)
    return torch.stack(variants)[drawn, torch.arange(len(images))]
