"""Prediction in parts, for inputs that do not fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.outputs import find, resized

__all__ = ["predict_in_parts"]


@torch.no_grad()
def predict_in_parts(
    model: Callable[[Tensor], Any],
    images: Tensor,
    *,
    images_at_once: int | None = None,
    window: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    taper: bool = False,
) -> Tensor:
    """Predict a batch in chunks of images, in windows of each image, or both.

    Chunks only reduce memory; they do not change the result (unless BatchNorm uses the statistics of the batch).
    Windows cover the image; the last one of a row or column is shifted back inside. Where windows overlap, their logits
    are averaged. ``taper`` reduces the weight towards the border of a window, where the network sees little context.

    Args:
        model: maps images (b, 3, h, w) to logits of any resolution, or to an output in which
            ``selftrain_seg.as_logits`` finds them: a teacher, or any network in evaluation mode.
        images: (B, 3, H, W).
        images_at_once: images per chunk; None for all.
        window: (h, w) in pixels, at most the size of the image; None for whole images.
        stride: (down, right) from one window to the next, in pixels; None for ``window``, without overlap.
        taper: whether weights increase linearly with the distance to the window's border, up to the overlap, to avoid
            seams.

    Returns:
        (B, C, H, W) logits of the size of the images, in the model's dtype (at least float32 with windows), without
        gradient. Logits of lower resolution are enlarged within each window.

    Raises:
        TypeError: ``images`` is not a floating-point tensor, a number is not an int, or the model returns no logits.
        ValueError: ``images`` is not four-dimensional or B is 0; a number is below 1; ``stride`` or ``taper`` is
            given without ``window``, or ``stride`` exceeds it; the model returns another number of images, or several
            tensors.

    Example:
        >>> import torch
        >>> model = torch.nn.Conv2d(3, 2, 1)
        >>> images = torch.rand(3, 3, 8, 10)
        >>> parts = predict_in_parts(model, images, images_at_once=2, window=(4, 6), stride=(4, 3))
        >>> torch.allclose(parts, model(images))
        True
    """
    _checks.check_images(images)
    if images.shape[0] == 0:
        raise ValueError(f"`images`: expected at least one, got {tuple(images.shape)}")
    if images_at_once is not None:
        _checks.check_count(images_at_once, "images_at_once")
    size: tuple[int, int] | None = None
    step = (1, 1)
    if window is not None:
        size = _checks.check_size(window, "window")
        step = size if stride is None else _checks.check_size(stride, "stride")
        if step[0] > size[0] or step[1] > size[1]:
            raise ValueError(f"`stride`: expected at most `window` = {size}, got {step}")
    elif stride is not None:
        raise ValueError("`stride`: expected None without `window`")
    elif taper:
        raise ValueError("`taper`: expected False without `window`")
    count = images_at_once or images.shape[0]
    chunks = [images[start : start + count].detach() for start in range(0, images.shape[0], count)]
    if size is None:
        return torch.cat([_predict(model, chunk) for chunk in chunks])
    return torch.cat([_by_windows(model, chunk, size, step, taper) for chunk in chunks])


def _predict(model: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    logits = find(model(images))
    _checks.check_images(logits, "model(images)")
    logits = resized(logits, images)
    if logits.shape[0] != images.shape[0]:
        raise ValueError(f"`model(images)`: expected a batch of {images.shape[0]}, got {tuple(logits.shape)}")
    return logits


def _by_windows(
    model: Callable[[Tensor], Any], images: Tensor, size: tuple[int, int], step: tuple[int, int], taper: bool
) -> Tensor:
    height, width = images.shape[-2:]
    h, w = min(size[0], height), min(size[1], width)
    weight = torch.ones(h, w, device=images.device)
    if taper:
        weight = weight * _ramp(h, size[0] - step[0], weight)[:, None] * _ramp(w, size[1] - step[1], weight)
    total = images.new_zeros(())  # until the number of classes is known
    times = torch.zeros(height, width, device=images.device)
    for top in _starts(height, h, step[0]):
        for left in _starts(width, w, step[1]):
            logits = _predict(model, images[..., top : top + h, left : left + w])
            if total.ndim == 0:
                dtype = torch.promote_types(logits.dtype, torch.float32)
                total = logits.new_zeros(images.shape[0], logits.shape[1], height, width, dtype=dtype)
            total[..., top : top + h, left : left + w] += logits * weight if taper else logits
            times[top : top + h, left : left + w] += weight
    return total / times


def _ramp(length: int, overlap: int, like: Tensor) -> Tensor:
    """1, 2, 3, ... from both ends, at most ``overlap`` + 1."""
    places = torch.arange(1, length + 1, dtype=like.dtype, device=like.device)
    return torch.minimum(places, places.flip(0)).clamp(max=overlap + 1)


def _starts(length: int, window: int, step: int) -> list[int]:
    """Start positions of windows that cover the whole length; the last window ends at the border."""
    return [*range(0, length - window, step), length - window]
