"""Weak and strong views of a batch of images, with their parameters."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from selftrain_seg import _checks
from selftrain_seg.ops.precision import as_given
from selftrain_seg.ops.random import check_generator, uniform_integers
from selftrain_seg.views._arguments import check_range
from selftrain_seg.views.geometry import ViewParameters, replay

__all__ = ["StrongSettings", "Views", "WeakStrongViews"]

# Range of the aspect ratio (height over width) of the cut-out box; its logarithm is uniform.
_LEAST_ASPECT, _GREATEST_ASPECT = 0.3, 1 / 0.3
# Tolerance of the range [0, 1] of images, for the rounding of bfloat16.
_ROUNDING = 2**-8
# Upper limit of scales, jitter half widths and blurs.
_MOST = 100.0


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


class Views(NamedTuple):
    """The output of ``WeakStrongViews``.

    Attributes:
        weak: (B, D, h, w), dtype of the images: scaled, cropped, flipped and rotated.
        strong: (B, D, h, w): the weak view with jitter, greyscale, blur and a box cut out.
        parameters: the parameters drawn, for ``replay``; ``parameters.cut_out`` marks the pixels of the strong view
            that do not show the image.
    """

    weak: Tensor
    strong: Tensor
    parameters: ViewParameters


class WeakStrongViews(nn.Module):
    """Make a weak and a strong view of every image of a batch, with separate parameters for each image.

    The weak view is a window of ``size`` at a uniform position of the image scaled by a factor s uniform in ``scale``
    (both sides rounded to whole pixels). A scaled image smaller than the window is padded at the bottom and on the
    right. The window is mirrored with probability ``flip_chance``; images without a preferred orientation (aerial
    images, tissue) can also be flipped vertically and rotated by quarter turns. The strong view is the weak view with
    colour jitter (brightness, contrast, saturation, hue), greyscale, Gaussian blur and a box cut out, each with its own
    probability. ``replay(labels, parameters)`` makes the labels of both views.
    ``views.strong(weak, views.draw(images))`` makes a second strong view, as in UniMatch.

    Images with three channels are RGB in [0, 1]. Jitter clips other values, such as those of normalised images, to
    [0, 1]; inside ``value_checks()`` they raise an error. Images with another number of channels (grey, infrared) are
    neither jittered nor converted to greyscale, and may have any values, as may RGB images with ``jitter_chance=0``.

    Differs from UniMatch: s multiplies the size of the image, while UniMatch draws the length of the longer side; the
    four kinds of jitter keep the order above instead of a random one; UniMatch fills the box with other images (CutMix)
    and redraws a box that does not fit, while here it is cut to the height or width of the view; the logarithm of the
    box's aspect ratio is uniform between those of 0.3 and 1/0.3, as in Random Erasing.

    Args:
        size: (h, w) of the views in pixels.
        scale: (low, high), above 0 and at most 100; UniMatch: (0.5, 2.0).
        flip_chance: probability of mirroring left to right, in [0, 1].
        vertical_flip_chance: probability of mirroring top to bottom, in [0, 1].
        quarter_turns: whether each view is rotated by 0, 1, 2 or 3 quarter turns, all equally likely. ``size`` need not
            be square: with one or three turns, a view (h, w) shows a window (w, h) of the image.
        strong: the settings of the strong view.
        fill: value of pixels outside the image and of the cut-out box; in [0, 1] if colours are jittered.

    State / distributed:
        No state. Give every rank a generator with another seed.

    Raises:
        TypeError: an argument, or a field of ``strong``, of the wrong type.
        ValueError: an argument, or a field of ``strong``, out of its range.

    References:
        Yang et al., Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation (UniMatch),
        CVPR 2023, arXiv:2208.09910. DeVries and Taylor, Improved Regularization of Convolutional Neural Networks
        with Cutout, 2017, arXiv:1708.04552. Zhong et al., Random Erasing Data Augmentation, AAAI 2020,
        arXiv:1708.04896.

    Example:
        >>> import torch
        >>> from selftrain_seg.views import WeakStrongViews, replay
        >>> images, labels = torch.rand(2, 3, 40, 60), torch.randint(0, 19, (2, 40, 60))
        >>> views = WeakStrongViews((32, 32))
        >>> weak, strong, parameters = views(images, generator=torch.Generator().manual_seed(0))
        >>> weak.shape, strong.shape, replay(labels, parameters).shape
        (torch.Size([2, 3, 32, 32]), torch.Size([2, 3, 32, 32]), torch.Size([2, 32, 32]))
        >>> replay(labels, parameters).masked_fill(parameters.cut_out, 255).shape  # no labels in the box
        torch.Size([2, 32, 32])
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        scale: tuple[float, float] = (0.5, 2.0),
        flip_chance: float = 0.5,
        vertical_flip_chance: float = 0.0,
        quarter_turns: bool = False,
        strong: StrongSettings = StrongSettings(),  # noqa: B008, a constant
        fill: float = 0.0,
    ) -> None:
        super().__init__()
        self.size = _checks.check_size(size)
        self.scale = check_range(scale, "scale", _MOST, open_low=True)
        _checks.check_real(flip_chance, "flip_chance", 0.0, 1.0)
        _checks.check_real(vertical_flip_chance, "vertical_flip_chance", 0.0, 1.0)
        if not isinstance(quarter_turns, bool):
            raise TypeError(f"`quarter_turns`: expected a bool, got {type(quarter_turns).__name__}")
        _checks.check_real(fill, "fill", -math.inf, math.inf)
        _check_settings(strong)
        self.flip_chance, self.settings, self.fill = float(flip_chance), strong, float(fill)
        self.vertical_flip_chance, self.quarter_turns = float(vertical_flip_chance), quarter_turns

    def extra_repr(self) -> str:  # noqa: D102
        return (
            f"size={self.size}, scale={self.scale}, flip_chance={self.flip_chance}, "
            f"vertical_flip_chance={self.vertical_flip_chance}, quarter_turns={self.quarter_turns}, "
            f"strong={self.settings}, fill={self.fill}"
        )

    def forward(
        self,
        images: Tensor,
        *,
        parameters: ViewParameters | None = None,
        generator: torch.Generator | None = None,
    ) -> Views:
        """Make the two views.

        Args:
            images: (B, D, H, W), any floating-point dtype. Three channels are RGB in [0, 1]: divide 8-bit images by
                255 before, and normalise after. Not modified.
            parameters: from an earlier call or :meth:`draw`, to make the same views again; None draws new ones.
            generator: source of the random numbers, on the device of ``images``; None for torch's default one.

        Returns:
            The views, in the dtype of ``images``; channels_last images give channels_last views.

        Raises:
            TypeError: ``images`` is not a floating-point tensor, or ``parameters`` is not a ViewParameters.
            ValueError: ``images`` is not (B, D, H, W) with D, H and W of at least 1, ``parameters`` has another batch
                size, image size or device, or the generator is on another device. Inside ``value_checks()``: RGB
                images that may be jittered are not in [0, 1].
        """
        _check_images(images, "images")
        if self.settings.jitter_chance > 0:
            _check_values(images, "images")
        if parameters is None:
            parameters = self.draw(images, generator=generator)
        weak = replay(images, parameters, mode="bilinear", fill=self.fill)
        return Views(weak, self.strong(weak, parameters), parameters)

    @torch.no_grad()
    def draw(self, images: Tensor, *, generator: torch.Generator | None = None) -> ViewParameters:
        """Draw parameters for a batch without making the views. No host synchronisation.

        Args:
            images: (B, D, H, W); only shape and device matter.
            generator: source of the random numbers, on the device of ``images``; None for torch's default one.

        Returns:
            The parameters.

        Raises:
            TypeError: ``images`` is not a floating-point tensor.
            ValueError: ``images`` is not (B, D, H, W) with D, H and W of at least 1, or the generator is on another
                device.
        """
        _check_images(images, "images")
        check_generator(generator, images)
        batch, _, height, width = images.shape
        draws = uniform_integers(batch, 17, images.device, generator)
        shares = (draws >> 38).float() / 2**24  # the upper 24 bits: uniform in [0, 1)
        settings = self.settings

        scale = _between(shares[:, 0], *self.scale)
        scaled = torch.stack([scale * height, scale * width], 1).round().long().clamp(min=1)
        view = torch.stack([torch.full_like(scaled[:, 0], side) for side in self.size], 1)
        upside_down, turns = torch.zeros_like(shares[:, 3], dtype=torch.bool), torch.zeros_like(draws[:, 0])
        if self.vertical_flip_chance or self.quarter_turns:  # drawn separately, so that the other draws stay the same
            more = uniform_integers(batch, 2, images.device, generator)
            upside_down = (more[:, 0] >> 38).float() / 2**24 < self.vertical_flip_chance
            turns = more[:, 1] % 4 if self.quarter_turns else turns
        window = torch.where((turns % 2 == 1)[:, None], view.flip(1), view)
        corner = draws[:, 1:3] % ((scaled - window).clamp(min=0) + 1)

        jitter = [
            _between(shares[:, 5 + k], max(0.0, 1 - half), 1 + half) for k, half in enumerate(settings.jitter[:3])
        ]
        jitter.append(_between(shares[:, 8], -settings.jitter[3], settings.jitter[3]))
        jittered = shares[:, 4] < settings.jitter_chance
        neutral = [torch.ones_like(jitter[0])] * 3 + [torch.zeros_like(jitter[0])]
        sigma = _between(shares[:, 11], *settings.blur_sigma_px)

        area = _between(shares[:, 13], *settings.cut_out_area) * (self.size[0] * self.size[1])
        aspect = _between(shares[:, 14], math.log(_LEAST_ASPECT), math.log(_GREATEST_ASPECT)).exp()
        sides = torch.stack([area * aspect, area / aspect], 1).sqrt().round().long()
        sides = torch.minimum(sides.clamp(min=1), view)
        start = draws[:, 15:17] % (view - sides + 1)
        row, column = (torch.arange(side, device=images.device) for side in self.size)
        end = start + sides
        cut_out = ((row >= start[:, :1]) & (row < end[:, :1]))[:, :, None]
        cut_out = cut_out & ((column >= start[:, 1:]) & (column < end[:, 1:]))[:, None, :]

        return ViewParameters(
            image_size=(height, width),
            size=self.size,
            scaled=scaled,
            corner=corner,
            flipped=shares[:, 3] < self.flip_chance,
            vertically_flipped=upside_down,
            quarter_turns=turns,
            jitter=torch.where(jittered[:, None], torch.stack(jitter, 1), torch.stack(neutral, 1)),
            grey=shares[:, 9] < settings.grey_chance,
            blur_sigma_px=torch.where(shares[:, 10] < settings.blur_chance, sigma, 0.0),
            cut_out=cut_out & rearrange(shares[:, 12] < settings.cut_out_chance, "b -> b 1 1"),
        )

    def strong(self, weak: Tensor, parameters: ViewParameters) -> Tensor:
        """Make strong views from weak ones.

        Images that the parameters do not change are returned bit for bit. Half precision is computed in float32.

        Args:
            weak: (B, D, h, w), floating point; three channels are RGB in [0, 1]. Not modified.
            parameters: jitter, greyscale, blur and box of each image; their geometry is ignored. The blur must not be
                wider than ``settings`` allow. Jitter and greyscale apply to three channels only.

        Returns:
            (B, D, h, w), in the dtype and memory format of ``weak``.

        Raises:
            TypeError: ``weak`` is not a floating-point tensor, or ``parameters`` is not a ViewParameters.
            ValueError: ``weak`` is not (B, D, h, w) with the B, h and w of ``parameters``, or on another device. Inside
                ``value_checks()``: an RGB image that is jittered is not in [0, 1]; a blur is too wide.
        """
        _check_images(weak, "weak")
        if not isinstance(parameters, ViewParameters):
            raise TypeError(f"`parameters`: expected ViewParameters, got {type(parameters).__name__}")
        _checks.check_map(parameters.cut_out, weak, "parameters.cut_out")
        if weak.shape[0] == 0:
            return weak.clone()
        from kornia import filters  # slow to import

        strong = weak.to(torch.promote_types(weak.dtype, torch.float32))
        if strong.shape[1] == 3:
            strong = _recoloured(strong, parameters)
        sigma = parameters.blur_sigma_px.to(strong.dtype)
        most = self.settings.blur_sigma_px[1]
        if _checks._value_checks and bool((sigma > most + _ROUNDING).any()):
            raise ValueError(
                f"`parameters.blur_sigma_px`: expected at most {most:g}, the maximum of these settings, got"
                f" {float(sigma.max()):g}; the blur window is too small for it"
            )
        # `gaussian_blur2d` of kornia 0.9 reads every sigma on the host, which would wait for the GPU.
        line = _gaussian(torch.where(sigma > 0, sigma, 1.0), math.ceil(3 * self.settings.blur_sigma_px[1]))
        with as_given(strong):
            blurred = filters.filter2d_separable(strong, line, line, border_type="replicate")
        strong = torch.where((sigma > 0)[:, None, None, None], blurred, strong)

        strong = torch.where(parameters.cut_out[:, None], self.fill, strong).to(weak.dtype)
        if weak.is_contiguous(memory_format=torch.channels_last) and not weak.is_contiguous():
            return strong.contiguous(memory_format=torch.channels_last)
        return strong.contiguous()


def _recoloured(images: Tensor, parameters: ViewParameters) -> Tensor:
    from kornia import color, enhance  # slow to import

    brightness, contrast, saturation, hue = parameters.jitter.to(images.dtype).unbind(1)
    changed = (brightness != 1) | (contrast != 1) | (saturation != 1) | (hue != 0)
    _check_values(images, "weak", changed)
    jittered = enhance.adjust_brightness_accumulative(images, brightness)
    jittered = enhance.adjust_contrast_with_mean_subtraction(jittered, contrast)
    jittered = enhance.adjust_saturation_with_gray_subtraction(jittered, saturation)
    jittered = enhance.adjust_hue(jittered, hue * (2 * math.pi))
    images = torch.where(changed[:, None, None, None], jittered, images)
    return torch.where(parameters.grey[:, None, None, None], color.rgb_to_grayscale(images), images)


def _gaussian(sigma: Tensor, radius: int) -> Tensor:
    """(B, 2 · radius + 1): Gaussian weights that sum to 1, for each sigma (B,) above 0."""
    steps = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    return (steps / sigma[:, None]).square().mul(-0.5).softmax(1)


def _between(share: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * share


def _check_images(images: Any, name: str) -> None:
    _checks.check_tensor(images, name)
    if not images.is_floating_point():
        raise TypeError(f"`{name}`: expected a floating-point dtype, got {images.dtype}; divide 8-bit images by 255")
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"`{name}`: expected (B, D, H, W) with at least one pixel, got {tuple(images.shape)}")


def _check_values(images: Tensor, name: str, where: Tensor | None = None) -> None:
    """Inside ``value_checks()``, require RGB in [0, 1] up to rounding for the images (B,) ``where``; NaN fails."""
    if not _checks._value_checks or images.shape[1] != 3:
        return
    wrong = ~((images >= -_ROUNDING) & (images <= 1 + _ROUNDING))
    if where is not None:
        wrong = wrong & where[:, None, None, None]
    if bool(wrong.any()):
        raise ValueError(
            f"`{name}`: expected RGB in [0, 1], as jitter clips to this range, got {float(images[wrong][0]):g}; divide"
            " 8-bit images by 255, and normalise after the views (or set `jitter_chance=0`)"
        )


def _check_settings(settings: Any) -> None:
    if not isinstance(settings, StrongSettings):
        raise TypeError(f"`strong`: expected StrongSettings, got {type(settings).__name__}")
    if not isinstance(settings.jitter, (tuple, list)) or len(settings.jitter) != 4:
        raise ValueError(f"`strong.jitter`: expected four numbers, got {settings.jitter!r}")
    for place, half in enumerate(settings.jitter):
        _checks.check_real(half, f"strong.jitter[{place}]", 0.0, 0.5 if place == 3 else _MOST)
    for name in ("jitter_chance", "grey_chance", "blur_chance", "cut_out_chance"):
        _checks.check_real(getattr(settings, name), f"strong.{name}", 0.0, 1.0)
    check_range(settings.blur_sigma_px, "strong.blur_sigma_px", _MOST)
    check_range(settings.cut_out_area, "strong.cut_out_area", 1.0)
