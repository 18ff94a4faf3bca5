"""Between any network and this library: images of sizes that it takes, logits out of whatever it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from selftrain_seg import _checks

__all__ = ["as_logits", "pad_to_multiple"]

_NAMES = ("out", "logits")  # of torchvision; of transformers


def as_logits(
    output: Any,
    size: Sequence[int] | Tensor | None = None,
    *,
    key: str | int | None = None,
    binary: bool = False,
) -> Tensor:
    """Take the logits out of what a segmentation network returned, at the resolution that is needed.

    A tensor is taken as it is. Of a dict or an object the entry ``out`` (torchvision) or ``logits`` (transformers) is
    taken; of a tuple or list the only tensor (B, C, h, w). If there are several, ``key`` has to say which.
    No gradient is cut.

    Args:
        output: a tensor (B, C, h, w), or a dict, a list, a tuple, or an object with such a tensor in it.
        size: (H, W), or a tensor whose last two dimensions count: the labels or the images. Logits of another
            resolution are resized bilinearly (``align_corners=False``). None leaves them as they are.
        key: the name of a dict's entry or an object's attribute, or the number of an element. It changes nothing if
            ``output`` is a tensor: many networks return a tensor in evaluation mode, and a list in training.
        binary: the network has one output channel z, trained with a sigmoid. The result is (0, z), two classes, whose
            softmax gives 1 - sigmoid(z) and sigmoid(z).

    Returns:
        (B, C, H, W) logits in the network's dtype, C at least 2.

    Raises:
        TypeError: there are no logits in ``output``, they are not floating point, or ``key`` is no name or number.
        ValueError: several tensors are there and no ``key``; ``key`` is not there; the tensor is not (B, C, h, w); it
            has one channel and ``binary`` is False, or another number and ``binary`` is True; ``size`` is not (H, W).

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
    """Enlarge images to the next multiple of what a network can take, at the bottom and on the right.

    U-Nets take multiples of 16 or 32 only, for instance. Cut the logits back with ``logits[..., :height, :width]``.

    Args:
        images: (B, C, H, W), floating point, H and W at least 1.
        multiple: of both sides, or (of the height, of the width); at least 1.
        mode: ``"replicate"`` repeats the last row and column, which BatchNorm and convolutions notice least;
            ``"constant"`` adds zeros.

    Returns:
        (B, C, H', W'), H' and W' below H and W plus ``multiple``; ``images`` itself where there is nothing to add.

    Raises:
        TypeError: ``images`` is no floating-point tensor, or ``multiple`` no int.
        ValueError: ``images`` is not (B, C, H, W) with at least one pixel, ``multiple`` is below 1, or ``mode`` is
            another.

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
    # No remainder of a negative number: the compiler's symbolic sizes have none.
    below, beside = (height + down - 1) // down * down - height, (width + right - 1) // right * right - width
    if below == 0 and beside == 0:
        return images
    return F.pad(images, (0, beside, 0, below), mode=mode)


def find(output: Any, key: str | int | None = None, *, name: str = "model(images)") -> Tensor:
    """The tensor that ``key`` names or, without one, that is beyond doubt; errors call the output ``name``."""
    if isinstance(output, Tensor):
        return output
    if key is not None:
        named = _at(output, key, name)
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
                f"({shapes}); say which with `selftrain_seg.as_logits(output, key={maps[0]})`"
            )
        found = output[maps[0]] if maps else None
    if not isinstance(found, Tensor):
        there = f" with {_entries(output)}; `selftrain_seg.as_logits(output, key=...)` takes one of another name"
        raise TypeError(
            f"`{name}`: expected logits, as a tensor, as `out` or `logits` of a dict or object, or as the only "
            f"(B, C, h, w) of a tuple, got {type(output).__name__}{there if isinstance(output, Mapping) else ''}"
        )
    return found


def _at(output: Any, key: str | int, name: str) -> Any:
    """What ``key`` names."""
    if isinstance(output, Mapping):
        if key in output:
            return output[key]
    elif isinstance(output, (tuple, list)) and isinstance(key, int):
        if -len(output) <= key < len(output):
            return output[key]
    elif isinstance(key, str) and hasattr(output, key):
        return getattr(output, key)
    raise ValueError(
        f"`key`: expected an entry of `{name}`, got {key!r}, and {type(output).__name__} has {_entries(output)}"
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
    """Logits (B, C, h, w) at the resolution ``size``."""
    height, width = _height_width(size)
    if logits.shape[-2] == height and logits.shape[-1] == width:
        return logits
    if 0 in (*logits.shape[-2:], height, width):
        raise ValueError(f"`{name}`: cannot be resized from {tuple(logits.shape[-2:])} to {(height, width)}")
    return F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
