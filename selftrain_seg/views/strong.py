"""The colours of the strong view: its settings, jitter, greyscale and blur."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.ops.precision import as_given
from selftrain_seg.views._arguments import check_range
from selftrain_seg.views.geometry import ViewParameters

__all__ = ["StrongSettings"]

# Tolerance of the range [0, 1] of images, for the rounding of bfloat16.
ROUNDING = 2**-8
# Upper limit of scales, jitter half widths and blurs.
MOST = 100.0


class StrongSettings(NamedTuple):
    """Settings of the strong view of ``WeakStrongViews``; the defaults are those of UniMatch.

    Attributes:
        jitter: half widths (b, c, s, h), at least 0: the factor of brightness is uniform in [max(0, 1 - b), 1 + b],
            those of contrast and saturation likewise; the shift of the hue is uniform in [-h, h] turns, h at most 0.5.
        jitter_chance: probability of colour jitter.
        grey_chance: probability of conversion to greyscale.
        blur_sigma_px: (low, high), at least 0, range of the uniform standard deviation of the blur, in pixels of the
            view.
        blur_chance: probability of blur.
        cut_out_area: (low, high) in [0, 1], range of the uniform area of the cut-out box, as a share of the view.
        cut_out_chance: probability that a box is cut out.
    """

    jitter: tuple[float, float, float, float] = (0.5, 0.5, 0.5, 0.25)
    jitter_chance: float = 0.8
    grey_chance: float = 0.2
    blur_sigma_px: tuple[float, float] = (0.1, 2.0)
    blur_chance: float = 0.5
    cut_out_area: tuple[float, float] = (0.02, 0.4)
    cut_out_chance: float = 0.5


def recoloured(images: Tensor, parameters: ViewParameters) -> Tensor:
    """Jitter the colours of RGB images and turn some grey."""
    from kornia import color, enhance  # slow to import

    brightness, contrast, saturation, hue = parameters.jitter.to(images.dtype).unbind(1)
    changed = (brightness != 1) | (contrast != 1) | (saturation != 1) | (hue != 0)
    check_values(images, "weak", changed)
    jittered = enhance.adjust_brightness_accumulative(images, brightness)
    jittered = enhance.adjust_contrast_with_mean_subtraction(jittered, contrast)
    jittered = enhance.adjust_saturation_with_gray_subtraction(jittered, saturation)
    # kornia 0.8 looks colours up by their hue and stops at NaN, so NaN waits outside.
    nan = jittered.isnan()
    jittered = torch.where(nan, jittered, enhance.adjust_hue(jittered.masked_fill(nan, 0.0), hue * (2 * math.pi)))
    images = torch.where(changed[:, None, None, None], jittered, images)
    return torch.where(parameters.grey[:, None, None, None], color.rgb_to_grayscale(images), images)


def blurred(images: Tensor, parameters: ViewParameters, most: float) -> Tensor:
    """Blur each image (b, D, h, w) with its standard deviation, at most ``most``."""
    from kornia import filters  # slow to import

    sigma = parameters.blur_sigma_px.to(images.dtype)
    if _checks._value_checks and bool((sigma > most + ROUNDING).any()):
        raise ValueError(
            f"`parameters.blur_sigma_px`: expected at most {most:g}, the maximum of these settings, got"
            f" {float(sigma.max()):g}; the blur window is too small for it"
        )
    # `gaussian_blur2d` of kornia 0.9 reads every sigma on the host, which would wait for the GPU.
    line = _gaussian(torch.where(sigma > 0, sigma, 1.0), math.ceil(3 * most))
    with as_given(images):
        images = images.contiguous()  # kornia 0.8 stops at channels_last
        found = filters.filter2d_separable(images, line, line, border_type="replicate")
    return torch.where((sigma > 0)[:, None, None, None], found, images)


def _gaussian(sigma: Tensor, radius: int) -> Tensor:
    """(B, 2 · radius + 1): Gaussian weights that sum to 1, for each sigma (B,) above 0."""
    steps = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    return (steps / sigma[:, None]).square().mul(-0.5).softmax(1)


def check_values(images: Tensor, name: str, where: Tensor | None = None) -> None:
    """Inside ``value_checks()``, require RGB in [0, 1] up to rounding for the images (B,) ``where``; NaN fails."""
    if not _checks._value_checks or images.shape[1] != 3:
        return
    wrong = ~((images >= -ROUNDING) & (images <= 1 + ROUNDING))
    if where is not None:
        wrong = wrong & where[:, None, None, None]
    if bool(wrong.any()):
        raise ValueError(
            f"`{name}`: expected RGB in [0, 1], as jitter clips to this range, got {float(images[wrong][0]):g}; divide"
            " 8-bit images by 255, and normalise after the views (or set `jitter_chance=0`)"
        )


def check_settings(settings: Any) -> None:
    if not isinstance(settings, StrongSettings):
        raise TypeError(f"`strong`: expected StrongSettings, got {type(settings).__name__}")
    if not isinstance(settings.jitter, (tuple, list)) or len(settings.jitter) != 4:
        raise ValueError(f"`strong.jitter`: expected four numbers, got {settings.jitter!r}")
    for place, half in enumerate(settings.jitter):
        _checks.check_real(half, f"strong.jitter[{place}]", 0.0, 0.5 if place == 3 else MOST)
    for name in ("jitter_chance", "grey_chance", "blur_chance", "cut_out_chance"):
        _checks.check_real(getattr(settings, name), f"strong.{name}", 0.0, 1.0)
    check_range(settings.blur_sigma_px, "strong.blur_sigma_px", MOST)
    check_range(settings.cut_out_area, "strong.cut_out_area", 1.0)
