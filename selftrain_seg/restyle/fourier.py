"""The low frequencies of one image given the amplitudes of another's."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.ops.precision import as_given
from selftrain_seg.restyle._arguments import centred, check_pair, finish, wide

__all__ = ["swap_amplitudes"]


def swap_amplitudes(images: Tensor, style: Tensor, *, beta: float = 0.01, clip: bool = False) -> Tensor:
    """Give the lowest frequencies of each image the amplitudes of another image's, and keep the phases (FDA).

    ``F⁻¹(M · |F(y)| · exp(i arg F(x)) + (1 - M) · F(x))``, F the Fourier transform of each channel and M 1 at
    frequencies of at most ``b = ⌊beta · min(H, W)⌋`` cycles per image along each axis. Phases hold what an image
    shows, so its labels stay right.

    As the published code, and other than the paper's text, which has beta·H and beta·W, M is as wide as it is high. A
    style of another size is not resized: its frequencies count per image, and its amplitudes per pixel.

    Args:
        images: (B, D, H, W), floating point; any D and any range. Not changed.
        style: (B, D, h, w), one for each image, with h and w above 2·b.
        beta: in [0, 0.5). FDA: 0.01, 0.05 and 0.09. 0, and all below 1 / min(H, W), swaps the mean alone.
        clip: whether results are cut to [0, 1].

    Returns:
        (B, D, H, W) in the dtype of ``images``; transformed in float32, or float64 if ``images`` is. Values that are
        not finite do not count (the image's mean stands for them), and stay as they are in ``images``; a channel of a
        style without a finite value gives NaN.

    Raises:
        TypeError: a batch is no floating-point tensor (8-bit images have to be divided by 255), or ``beta`` no number.
        ValueError: a batch is not (B, D, H, W) with at least one pixel; B, D or the device differ; ``beta`` is out of
            range; ``style`` is too small to have these frequencies.

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
    if 2 * most >= min(height, width):
        raise ValueError(f"`beta`: expected a value below 0.5, got {beta}")
    if 2 * most >= min(style.shape[-2:]):
        raise ValueError(
            f"`style`: expected sides above {2 * most} pixels, to have the frequencies up to {most} that `beta` = "
            f"{beta} asks for, got {tuple(style.shape[-2:])}"
        )
    if images.shape[0] == 0:  # nothing to transform: the libraries of Fourier transforms refuse that
        return images.clone()
    with as_given(images):
        source, target = wide(images), wide(style).to(wide(images).dtype)
        apart, mean, finite = centred(source)
        style_apart, style_mean, _ = centred(target)
        spectrum = torch.fft.rfft2(apart, norm="forward")  # amplitudes per pixel, so that sizes may differ
        window, style_window = (
            _lowest(part, most) for part in (spectrum, torch.fft.rfft2(style_apart, norm="forward"))
        )
        # The mean was taken out, in which a small number would drown; its phase is its sign.
        window[..., 0, 0], style_window[..., 0, 0] = mean[..., 0, 0], style_mean[..., 0, 0]
        swapped = torch.polar(style_window.abs(), window.angle())
        spectrum[..., : most + 1, : most + 1] = swapped[..., : most + 1, :]
        if most:
            spectrum[..., -most:, : most + 1] = swapped[..., most + 1 :, :]
        return finish(torch.fft.irfft2(spectrum, s=(height, width), norm="forward"), images, finite, clip)


def _lowest(spectrum: Tensor, most: int) -> Tensor:
    """(…, 2·most + 1, most + 1): a half spectrum's frequencies 0, 1, …, most, -most, …, -1, by 0, 1, …, most."""
    parts = [spectrum[..., : most + 1, : most + 1]]
    if most:
        parts.append(spectrum[..., -most:, : most + 1])
    return torch.cat(parts, dim=-2)
