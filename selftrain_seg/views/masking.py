"""Hide random patches of images (MIC)."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.ops.random import check_generator, uniform

__all__ = ["mask_patches"]


def mask_patches(
    images: Tensor,
    patch_size: int = 64,
    ratio: float = 0.7,
    *,
    value: float | Tensor = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Replace random square patches of each image by one colour.

    The patches of ``patch_size`` b form a grid that starts at the top left pixel. Each patch is hidden with probability
    ``ratio`` r, independently per patch and image: ``hidden[i, j] = u[i // b, j // b] < r`` with u uniform in [0, 1).
    Patches at the bottom and on the right are cut off if H or W is not a multiple of b. The student learns the
    teacher's labels of the whole image, including the hidden pixels. No host synchronisation.

    Differs from MIC's published code, which stretches ``round(H / b)`` rows of patches to the height, and likewise for
    columns. If b divides both sides, the two agree.

    Args:
        images: (B, D, H, W), any floating-point dtype and layout; gradients flow to the pixels that are not hidden.
        patch_size: b in pixels, at least 1. MIC: 64 for images of full resolution, 32 for half.
        ratio: r in [0, 1]. MIC: 0.7.
        value: value of the hidden pixels: a number, or (D,), floating point. MIC masks normalised images, so its 0 is
            the mean of all images: pass that mean if the network normalises.
        generator: source of the random numbers, on the device of ``images``; None for torch's default one.

    Returns:
        ``(masked, hidden)``: (B, D, H, W), dtype and memory format of ``images``, a copy, and (B, H, W) bool.

    Raises:
        TypeError: ``images`` or ``value`` is not floating point, ``patch_size`` is not an int, or ``ratio`` is not a
            number.
        ValueError: ``images`` is not (B, D, H, W), ``patch_size`` is below 1 or ``ratio`` outside [0, 1]; ``value`` is
            not (D,); ``value`` or the generator is on another device.

    References:
        Hoyer et al., MIC: Masked Image Consistency for Context-Enhanced Domain Adaptation, CVPR 2023,
        arXiv:2212.01322.

    Example:
        >>> import torch
        >>> from selftrain_seg.views import mask_patches
        >>> masked, hidden = mask_patches(torch.ones(1, 3, 3, 5), 2, 0.5, generator=torch.Generator().manual_seed(0))
        >>> hidden  # patches of 2 × 2, cut at the bottom and on the right
        tensor([[[ True,  True, False, False,  True],
                 [ True,  True, False, False,  True],
                 [ True,  True,  True,  True, False]]])
        >>> torch.equal(masked[:, 0] == 0, hidden)
        True
    """
    _checks.check_images(images)
    _checks.check_count(patch_size, "patch_size")
    _checks.check_real(ratio, "ratio", 0.0, 1.0)
    if isinstance(value, Tensor):
        value = _of_channels(value, images)
    else:
        _checks.check_real(value, "value", -torch.inf, torch.inf)
        value = float(value)
    check_generator(generator, images)
    batch, _, height, width = images.shape
    grid = batch, -(-height // patch_size), -(-width // patch_size)
    drawn = uniform(grid, images.device, generator)
    row, column = (torch.arange(side, device=images.device) // patch_size for side in (height, width))
    hidden = (drawn < ratio)[:, row[:, None], column]
    masked = torch.where(hidden[:, None], value, images)
    if images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous():
        masked = masked.contiguous(memory_format=torch.channels_last)
    return masked, hidden


def _of_channels(value: Tensor, images: Tensor) -> Tensor:
    """Return one value per channel as (D, 1, 1) in the dtype of the images."""
    if not value.is_floating_point():
        raise TypeError(f"`value`: expected a floating-point dtype, got {value.dtype}")
    if tuple(value.shape) != (images.shape[1],):
        raise ValueError(f"`value`: expected a number or (D,) = ({images.shape[1]},), got {tuple(value.shape)}")
    _checks.check_device(value, images, "value")
    return value.to(images.dtype)[:, None, None]
