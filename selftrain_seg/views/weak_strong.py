"""Weak and strong views of a batch of images, with their parameters."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from selftrain_seg import _checks
from selftrain_seg.ops.random import check_generator, uniform_integers
from selftrain_seg.views._arguments import check_range
from selftrain_seg.views.geometry import ViewParameters, replay
from selftrain_seg.views.strong import MOST, StrongSettings, blurred, check_settings, check_values, recoloured

__all__ = ["Views", "WeakStrongViews"]

# Range of the aspect ratio (height over width) of the cut-out box; its logarithm is uniform.
_LEAST_ASPECT, _GREATEST_ASPECT = 0.3, 1 / 0.3


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
        self.scale = check_range(scale, "scale", MOST, open_low=True)
        _checks.check_real(flip_chance, "flip_chance", 0.0, 1.0)
        _checks.check_real(vertical_flip_chance, "vertical_flip_chance", 0.0, 1.0)
        if not isinstance(quarter_turns, bool):
            raise TypeError(f"`quarter_turns`: expected a bool, got {type(quarter_turns).__name__}")
        _checks.check_real(fill, "fill", -math.inf, math.inf)
        check_settings(strong)
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
            check_values(images, "images")
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
        strong = weak.to(torch.promote_types(weak.dtype, torch.float32))
        if strong.shape[1] == 3:
            strong = recoloured(strong, parameters)
        strong = blurred(strong, parameters, self.settings.blur_sigma_px[1])
        strong = torch.where(parameters.cut_out[:, None], self.fill, strong).to(weak.dtype)
        if weak.is_contiguous(memory_format=torch.channels_last) and not weak.is_contiguous():
            return strong.contiguous(memory_format=torch.channels_last)
        return strong.contiguous()


def _between(share: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * share


def _check_images(images: Any, name: str) -> None:
    _checks.check_tensor(images, name)
    if not images.is_floating_point():
        raise TypeError(f"`{name}`: expected a floating-point dtype, got {images.dtype}; divide 8-bit images by 255")
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"`{name}`: expected (B, D, H, W) with at least one pixel, got {tuple(images.shape)}")
