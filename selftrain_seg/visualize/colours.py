"""Paint label maps in the colours of their classes, alone or over images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["colorize", "overlay"]

_GREY = (0.299, 0.587, 0.114)  # luma weights, ITU-R BT.601


def colorize(
    labels: Tensor,
    palette: Sequence[Sequence[int]] | Tensor,
    *,
    ignore_index: int = IGNORE_INDEX,
    ignore_color: Sequence[int] = (0, 0, 0),
) -> Tensor:
    """Paint label maps with a palette.

    Args:
        labels: (B, H, W), integer, on any device; in [0, len(palette)) or ``ignore_index``.
        palette: (red, green, blue) in [0, 255] for each class, at most 256: ``LabelMap.palette``,
            ``SyntheticStreets.palette``, or your own as sequence, array or tensor.
        ignore_index: label of the pixels painted in ``ignore_color``, even if the palette has a colour for it.
        ignore_color: (red, green, blue).

    Returns:
        (B, 3, H, W) uint8 on the device of ``labels``.

    Raises:
        TypeError: ``labels`` is not an integer tensor.
        ValueError: ``labels`` is not (B, H, W) or exceeds the palette (the host waits for the device); ``palette`` is
            not 1 to 256 colours, or a colour is not three values in [0, 255].

    Example:
        >>> import torch
        >>> from selftrain_seg.visualize import colorize
        >>> painted = colorize(torch.tensor([[[0, 1, 255]]]), [(128, 64, 128), (244, 35, 232)])
        >>> painted[0, :, 0].T
        tensor([[128,  64, 128],
                [244,  35, 232],
                [  0,   0,   0]], dtype=torch.uint8)
    """
    _checks.check_label_maps(labels)
    table = torch.cat([_table(palette, "palette"), _table([ignore_color], "ignore_color")]).to(labels.device)
    classes, ignored = len(table) - 1, labels == ignore_index
    wide = labels.long()
    wrong = wide[~ignored & ((wide < 0) | (wide >= classes))]
    if len(wrong):
        raise ValueError(
            f"`labels`: expected values in [0, {classes}), as many as `palette` has, or ignore_index {ignore_index},"
            f" got {int(wrong[0])}"
        )
    return table[wide.masked_fill(ignored, classes)].movedim(-1, 1).contiguous()


def overlay(
    images: Tensor,
    labels: Tensor,
    palette: Sequence[Sequence[int]] | Tensor,
    *,
    opacity: float = 0.5,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Blend label maps with their images; ignored pixels show the image in grey.

    Args:
        images: (B, 3, H, W), uint8, or floating point in [0, 1].
        labels: (B, H, W), integer, on the device of ``images``; in [0, len(palette)) or ``ignore_index``.
        palette: (red, green, blue) of each class, as for :func:`colorize`.
        opacity: opacity of the labels, in [0, 1].
        ignore_index: label of the ignored pixels.

    Returns:
        (B, 3, H, W) uint8 on the device of ``images``.

    Raises:
        TypeError: ``images`` or ``labels`` is not a tensor of a listed dtype; ``opacity`` is not a number.
        ValueError: a shape, device or value is not as listed; floating-point images are far outside [0, 1].

    Example:
        >>> import torch
        >>> from selftrain_seg.visualize import overlay
        >>> images = torch.full((1, 3, 1, 2), 100, dtype=torch.uint8)
        >>> overlay(images, torch.tensor([[[0, 255]]]), [(200, 0, 50)])[0, :, 0].T
        tensor([[150,  50,  75],
                [100, 100, 100]], dtype=torch.uint8)
    """
    images = as_bytes(images)
    _checks.check_integer(labels, "labels")
    _checks.check_map(labels, images, "labels")
    _checks.check_real(opacity, "opacity", 0.0, 1.0)
    blended = torch.lerp(images.float(), colorize(labels, palette, ignore_index=ignore_index).float(), float(opacity))
    return torch.where((labels == ignore_index)[:, None], grey(images), blended).round().to(torch.uint8)


def grey(images: Tensor) -> Tensor:
    """Convert images to grey, (B, 3, H, W) float32."""
    weights = torch.tensor(_GREY, device=images.device).view(3, 1, 1)
    return (images.float() * weights).sum(1, keepdim=True).expand(-1, 3, -1, -1)


def as_bytes(images: Tensor, name: str = "images") -> Tensor:
    """Convert images to (B, 3, H, W) uint8; floats may exceed [0, 1] slightly."""
    _checks.check_tensor(images, name)
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"`{name}`: expected (B, 3, H, W), got {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return images.detach()
    if not images.is_floating_point():
        raise TypeError(f"`{name}`: expected uint8 or a floating-point dtype, got {images.dtype}")
    values = images.detach().float().nan_to_num()
    if values.numel():
        low, high = float(values.min()), float(values.max())
        if low < -0.25 or high > 1.25:  # resizing overshoots a little; normalised images go far beyond
            raise ValueError(f"`{name}`: expected values in [0, 1], not normalised, got {low:.3g} to {high:.3g}")
    return values.clamp(0, 1).mul(255).round().to(torch.uint8)


def _table(colours: Any, name: str) -> Tensor:
    """(C, 3) uint8 on the host."""
    try:
        table = torch.as_tensor(colours)
    except (TypeError, ValueError):
        raise ValueError(f"`{name}`: expected (red, green, blue) for each class, got {colours!r}") from None
    if table.ndim != 2 or table.shape[1] != 3 or not 1 <= len(table) <= 256:
        raise ValueError(f"`{name}`: expected 1 to 256 colours of three values, got shape {tuple(table.shape)}")
    if table.is_floating_point() or not bool(((table >= 0) & (table <= 255)).all()):
        raise ValueError(f"`{name}`: expected integers in [0, 255]")
    return table.to(torch.uint8)
