"""Adapters between a network and this library: pad the images, extract the logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from selftrain_seg import _checks

__all__ = ["as_logits", "pad_to_multiple"]

_NAMES = ("out", "logits")  # torchvision, transformers


def as_logits(
    output: Any,
    size: Sequence[int] | Tensor | None = None,
    *,
    key: str | int | None = None,
    binary: bool = False,
) -> Tensor:
    """Extract the logits from the output of a segmentation network, and resize them.

    A tensor is used directly. A dict or an object is read at ``out`` (torchvision) or ``logits`` (transformers). A
    tuple or list must have a single tensor (B, C, h, w), or ``key`` selects one. Gradients are kept.

    Args:
        output: a tensor (B, C, h, w), or a dict, a list, a tuple, or an object with such a tensor in it.
        size: (H, W), or a tensor (..., H, W) such as the labels or the images. Logits of a different size are resized
            bilinearly (``align_corners=False``). None does not resize.
        key: name of a dict entry or an attribute, or index of a list element. Ignored if ``output`` is a tensor: many
            networks return a tensor in evaluation mode and a list in training mode.
        binary: whether the network has one output channel z, trained with a sigmoid. The result then has two channels,
            (0, z), whose softmax is (1 - sigmoid(z), sigmoid(z)).

    Returns:
        (B, C, H, W) logits in the network's dtype, C at least 2.

    Raises:
        TypeError: ``output`` has no logits, they are not floating point, or ``key`` is neither a string nor an int.
        ValueError: ``output`` has several tensors and ``key`` is None; ``key`` does not exist; the tensor is not
            (B, C, h, w); it has one channel without ``binary``, or several with it; ``size`` is not (H, W).

    Example:
        >>> import torch
        >>> images = torch.rand(2, 3, 64, 128)
        >>> as_logits({"out": torch.zeros(2, 19, 8, 16)}, size=images).shape
        torch.Size([2, 19, 64, 128])
        >>> z = torch.tensor([2.0]).reshape(1, 1, 1, 1)
        >>> as_logits([z, z + 1], key=0, binary=True).softmax(dim=1).flatten()  # 1 - sigmoid(2), sigmoid(2)
        tensor([0.1192, 0.8808])
    """
    if key is not None and (isinstance(key, bool) or not isinstance(key, (str, int))):
        raise TypeError(f"`key`: expected a name or a number, got {type(key).__name__}")
    logits = find(output, key, name="output")
    if binary:
        _checks.check_images(logits, "output")
        if logits.shape[1] != 1:
            raise ValueError(f"`output`: expected one channel with `binary`, got {tuple(logits.shape)}")
    else:
        _checks.check_logits(logits, name="output")
    if size is not None:
        logits = resized(logits, size, name="output")
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if binary else logits


def pad_to_multiple(images: Tensor, multiple: int | Sequence[int], *, mode: str = "replicate") -> Tensor:
    """Pad images at the bottom and on the right to the next multiple of a size.

    Many U-Nets only accept multiples of 16 or 32. Crop the logits with ``logits[..., :height, :width]``.

    Args:
        images: (B, C, H, W), floating point, H and W at least 1.
        multiple: one number for both sides, or (height, width); at least 1.
        mode: ``"replicate"`` repeats the last row and column, which disturbs BatchNorm and convolutions least;
            ``"constant"`` adds zeros.

    Returns:
        (B, C, H', W') with the smallest multiples H' ≥ H and W' ≥ W; ``images`` itself if no padding is needed.

    Raises:
        TypeError: ``images`` is not a floating-point tensor, or ``multiple`` is not an int.
        ValueError: ``images`` is not (B, C, H, W) with at least one pixel, ``multiple`` is below 1, or ``mode`` is
            unknown.

    Example:
        >>> import torch
        >>> images = torch.rand(1, 3, 45, 64)
        >>> network = torch.nn.Sequential(torch.nn.PixelUnshuffle(16), torch.nn.PixelShuffle(16))
        >>> padded = pad_to_multiple(images, 16)
        >>> padded.shape
        torch.Size([1, 3, 48, 64])
        >>> as_logits(network(padded), size=padded)[..., :45, :64].shape
        torch.Size([1, 3, 45, 64])
    """
    _checks.check_images(images)
    height, width = images.shape[-2:]
    if height == 0 or width == 0:
        raise ValueError(f"`images`: expected at least one pixel, got {tuple(images.shape)}")
    down, right = _checks.check_size((multiple, multiple) if isinstance(multiple, int) else multiple, "multiple")
    _checks.check_choice(mode, "mode", ("replicate", "constant"))
    # Not `-height % down`: the compiler's symbolic sizes have no remainder of negative numbers.
    below, beside = (height + down - 1) // down * down - height, (width + right - 1) // right * right - width
    if below == 0 and beside == 0:
        return images
    return F.pad(images, (0, beside, 0, below), mode=mode)


def find(output: Any, key: str | int | None = None, *, name: str = "model(images)") -> Tensor:
    """Return the tensor at ``key``, or the only candidate without one; errors call the output ``name``."""
    if isinstance(output, Tensor):
        return output
    if key is not None:
        named = _entry(output, key, name)
        if not isinstance(named, Tensor):
            raise TypeError(f"`{name}`: expected a tensor as entry {key!r}, got {type(named).__name__}")
        return named
    found: Any = None
    if isinstance(output, Mapping):
        found = next((output[entry] for entry in _NAMES if entry in output), None)
    elif any(hasattr(output, entry) for entry in _NAMES):
        found = next(getattr(output, entry) for entry in _NAMES if hasattr(output, entry))
    elif isinstance(output, (tuple, list)):
        maps = [place for place, part in enumerate(output) if isinstance(part, Tensor) and part.ndim == 4]
        if len(maps) > 1:
            shapes = ", ".join(f"{place}: {tuple(output[place].shape)}" for place in maps)
            raise ValueError(
                f"`{name}`: expected one tensor (B, C, h, w), got a {type(output).__name__} with {len(maps)} "
                f"({shapes}); choose one with `selftrain_seg.as_logits(output, key={maps[0]})`"
            )
        found = output[maps[0]] if maps else None
    if not isinstance(found, Tensor):
        there = f" with {_entries(output)}; `selftrain_seg.as_logits(output, key=...)` reads any other entry"
        raise TypeError(
            f"`{name}`: expected logits: a tensor, a dict or object with `out` or `logits`, or a tuple with one "
            f"(B, C, h, w), got {type(output).__name__}{there if isinstance(output, Mapping) else ''}"
        )
    return found


def _entry(output: Any, key: str | int, name: str) -> Any:
    """Return the entry, element or attribute ``key``."""
    if isinstance(output, Mapping):
        if key in output:
            return output[key]
    elif isinstance(output, (tuple, list)) and isinstance(key, int):
        if -len(output) <= key < len(output):
            return output[key]
    elif isinstance(key, str) and hasattr(output, key):
        return getattr(output, key)
    raise ValueError(
        f"`key`: expected an entry of `{name}`, got {key!r}; {type(output).__name__} has {_entries(output)}"
    )


def _entries(output: Any) -> str:
    if isinstance(output, Mapping):
        return ", ".join(map(repr, output)) or "no entries"
    return f"{len(output)} elements" if isinstance(output, (tuple, list)) else "none of that name"


def _height_width(size: Sequence[int] | Tensor) -> tuple[int, int]:
    if not isinstance(size, Tensor):
        return _checks.check_size(size)
    if size.ndim < 2:
        raise ValueError(f"`size`: expected (height, width) or a tensor (..., H, W), got a tensor {tuple(size.shape)}")
    return size.shape[-2], size.shape[-1]


def resized(logits: Tensor, size: Sequence[int] | Tensor, *, name: str = "model(images)") -> Tensor:
    """Return logits (B, C, h, w) resized to ``size``."""
    height, width = _height_width(size)
    if logits.shape[-2] == height and logits.shape[-1] == width:
        return logits
    if 0 in (*logits.shape[-2:], height, width):
        raise ValueError(f"`{name}`: cannot be resized from {tuple(logits.shape[-2:])} to {(height, width)}")
    return F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
