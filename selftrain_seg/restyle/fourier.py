"""Swap of low-frequency amplitudes between images (FDA)."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.ops.precision import as_given
from selftrain_seg.restyle._arguments import centred, check_pair, finish, wide

__all__ = ["swap_amplitudes"]


def swap_amplitudes(images: Tensor, style: Tensor, *, beta: float = 0.01, clip: bool = False) -> Tensor:
    """Replace the low-frequency amplitudes of each image with those of another image, keeping the phases (FDA).

    ``F⁻¹(M · |F(y)| · exp(i arg F(x)) + (1 - M) · F(x))``, where F is the Fourier transform of each channel, and M is 1
    at frequencies of at most ``b = ⌊beta · min(H, W)⌋`` cycles per image along each axis and 0 elsewhere. The phases
    keep the content of the image, so its labels stay valid.

    M is square, as in the published code; the text of the paper has beta·H and beta·W instead. A style of a different
    size is not resized: its frequencies are per image and its amplitudes per pixel.

    Args:
        images: (B, D, H, W), floating point; any D and any range. Not changed.
        style: (B, D, h, w), one style per image, with h and w above 2·b.
        beta: in [0, 0.5). FDA: 0.01, 0.05 and 0.09. Values below 1 / min(H, W) swap only the mean.
        clip: whether to clip the result to [0, 1].

    Returns:
        (B, D, H, W) in the dtype of ``images``; computed in float32, or float64 for float64. Non-finite values of
        ``images`` are kept, and replaced by the mean of the channel in the transform. A style channel without a finite
        value gives NaN.

    Raises:
        TypeError: a batch is not a floating-point tensor (divide 8-bit images by 255), or ``beta`` is not a number.
        ValueError: a batch is not (B, D, H, W) with at least one pixel; B, D or the device differ; ``beta`` is out of
            range; ``style`` is too small for these frequencies.

    References:
        Yang and Soatto, "FDA: Fourier Domain Adaptation for Semantic Segmentation", CVPR 2020, arXiv:2004.05498, Eq. 2.

    Example:
        >>> import torch
        >>> image = torch.tensor([[0.2, 0.4], [0.2, 0.4]])[None, None]
        >>> style = torch.tensor([[0.6, 0.6], [0.8, 0.8]])[None, None]
        >>> swap_amplitudes(image, style)  # the mean of the style, the pattern of the image
        tensor([[[[0.6000, 0.8000],
                  [0.6000, 0.8000]]]])
    """
    check_pair(images, style)
    _checks.check_real(beta, "beta", 0.0, 0.5)
    height, width = images.shape[-2:]
    most = int(beta * min(height, width))
    if beta == 0.5:
        raise ValueError(f"`beta`: expected a value below 0.5, got {beta}")
    if 2 * most >= min(style.shape[-2:]):
        raise ValueError(
            f"`style`: expected sides above {2 * most} pixels, for the frequencies up to {most} of `beta` = "
            f"{beta}, got {tuple(style.shape[-2:])}"
        )
    if images.shape[0] == 0:  # FFT libraries refuse empty batches
        return images.clone()
    with as_given(images):
        source, target = wide(images), wide(style).to(wide(images).dtype)
        apart, mean, finite = centred(source)
        style_apart, style_mean, _ = centred(target)
        spectrum = torch.fft.rfft2(apart, norm="forward")  # amplitudes per pixel, so that sizes may differ
        window, style_window = (
            _lowest(part, most) for part in (spectrum, torch.fft.rfft2(style_apart, norm="forward"))
        )
        # The mean was subtracted for precision and is inserted here; its phase is its sign.
        window[..., 0, 0], style_window[..., 0, 0] = mean[..., 0, 0], style_mean[..., 0, 0]
        swapped = torch.polar(style_window.abs(), window.angle())
        spectrum[..., : most + 1, : most + 1] = swapped[..., : most + 1, :]
        if most:
            spectrum[..., -most:, : most + 1] = swapped[..., most + 1 :, :]
        return finish(torch.fft.irfft2(spectrum, s=(height, width), norm="forward"), images, finite, clip)


def _lowest(spectrum: Tensor, most: int) -> Tensor:
    """Return (…, 2·most + 1, most + 1): frequencies 0, 1, …, most, -most, …, -1 by 0, 1, …, most."""
    parts = [spectrum[..., : most + 1, : most + 1]]
    if most:
        parts.append(spectrum[..., -most:, : most + 1])
    return torch.cat(parts, dim=-2)
