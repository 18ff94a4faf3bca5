"""Scale, crop, flips and quarter turns of a whole batch, forth and back, by indices computed in integers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.ops.places import containing, enclosing

__all__ = ["ViewParameters", "replay", "replay_inverse"]

_MODES = ("bilinear", "nearest")


class ViewParameters(NamedTuple):
    """What was done to each image of a batch to make its views; drawn by ``WeakStrongViews``.

    The geometry (the first seven fields) is: resize the image to ``scaled``, cut a window at ``corner``, which may
    stick out of the scaled image at the bottom and on the right, mirror it left to right where ``flipped`` and top to
    bottom where ``vertically_flipped``, and last turn it counterclockwise by ``quarter_turns``. After the turn it has
    the ``size`` (h, w) of the view: so of an image that is turned by one or three quarters the window is (w, h), and
    any size will do. The rest makes the strong view from the weak one, in the order of the fields.

    Attributes:
        image_size: (H, W) of the images, two ints.
        size: (h, w) of the views, two ints.
        scaled: (B, 2) int64, height and width of the scaled image, at least 1.
        corner: (B, 2) int64, (top, left) of the window in the scaled image.
        flipped: (B,) bool, whether the window is mirrored left to right.
        vertically_flipped: (B,) bool, whether it is mirrored top to bottom.
        quarter_turns: (B,) int64, how often it is turned by 90° counterclockwise, as ``torch.rot90`` turns; modulo 4.
        jitter: (B, 4) float32, factors of brightness, contrast and saturation, and the hue's shift in turns;
            (1, 1, 1, 0) leaves the colours as they are.
        grey: (B,) bool, whether the colours are taken out.
        blur_sigma_px: (B,) float32, standard deviation of the blur in pixels of the view, 0 for none.
        cut_out: (B, h, w) bool, the pixels of the strong view that were cut out, all False where none were.
    """

    image_size: tuple[int, int]
    size: tuple[int, int]
    scaled: Tensor
    corner: Tensor
    flipped: Tensor
    vertically_flipped: Tensor
    quarter_turns: Tensor
    jitter: Tensor
    grey: Tensor
    blur_sigma_px: Tensor
    cut_out: Tensor


def replay(tensor: Tensor, parameters: ViewParameters, *, mode: str | None = None, fill: float | None = None) -> Tensor:
    """Carry what belongs to the full images (a teacher's probabilities, labels) into the views.

    This is the function that makes the weak view of the images, so what it returns lies pixel on pixel over it.
    With pixel centres at half-integers, row i of the view shows the row ``(top + i + 1/2) · H / H_scaled`` of
    the image: ``nearest`` takes the row that contains this place, ``bilinear`` mixes the two whose centres
    enclose it (at the border, repeats the last). Columns likewise, from the right where flipped. Flips and quarter
    turns only move pixels (bilinear: to within rounding, as the order of its sums turns, too). Places are computed in
    integers and are exact; where a place is the centre of a pixel its value is copied bit for bit, infinities
    included. No antialiasing below scale 1. No host synchronisation.

    Args:
        tensor: (B, …, H, W), any dtype, H and W as in ``parameters.image_size``. Bring a network's output of a
            lower resolution there first. Gradients flow through floating-point tensors.
        parameters: the views.
        mode: ``"bilinear"`` (floating point only, computed in float32 or float64) or ``"nearest"``; None for
            bilinear in floating-point tensors and nearest in all others.
        fill: value where the view lies outside the image. None stands for 255, the ignore label, in integer
            tensors (B, H, W) and (B, 1, H, W) (label maps) and for 0 in all others.

    Returns:
        (B, …, h, w), dtype and device of ``tensor``, a copy. Channels_last stays channels_last.

    Raises:
        TypeError: ``tensor`` is not a tensor, or not floating point with ``mode="bilinear"``; ``parameters`` are
            no ViewParameters; ``fill`` is not a number.
        ValueError: ``tensor`` is not (B, …, H, W) with the B, H and W of ``parameters``, or on another device;
            ``mode`` is none of those listed; ``fill`` cannot be held by the dtype of ``tensor``.

    Example:
        >>> import torch
        >>> from selftrain_seg.views import WeakStrongViews, replay
        >>> views = WeakStrongViews((2, 3), scale=(1.0, 1.0), flip_chance=1.0)
        >>> parameters = views.draw(torch.rand(1, 3, 1, 3))
        >>> replay(torch.tensor([[[0, 1, 2]]]), parameters)  # mirrored; the second row lies below the image
        tensor([[[  2,   1,   0],
                 [255, 255, 255]]])
    """
    mode, value = _check_arguments(tensor, parameters, "image_size", mode, fill)
    turned, backwards = _position(parameters)
    strides = (parameters.image_size[1], 1)
    axes = []
    for axis, size in enumerate(parameters.size):  # of the view; where turned, the image's other dimension lies there
        length, stride = (
            torch.where(turned, pair[1 - axis], pair[axis])[:, None] for pair in (parameters.image_size, strides)
        )
        scaled, corner = (
            torch.where(turned, pair[:, 1 - axis], pair[:, axis])[:, None]
            for pair in (parameters.scaled, parameters.corner)
        )
        index = torch.arange(size, device=tensor.device)
        index = torch.where(backwards[axis][:, None], size - 1 - index, index)
        place = 2 * (index + corner) + 1  # the pixel's centre, in half pixels
        axes.append(_Axis(place * length, 2 * scaled, length - 1, stride))
    return _sample(tensor, axes[0], axes[1], mode, value)[0]


def replay_inverse(
    tensor: Tensor, parameters: ViewParameters, *, mode: str | None = None, fill: float | None = None
) -> tuple[Tensor, Tensor]:
    """Carry what belongs to the views (a student's output) back to where it came from in the full images.

    A pixel of the image is valid where its centre falls into a pixel of the view, which ``nearest`` copies;
    ``bilinear`` mixes the view's pixels whose centres enclose it (at the border of the view and of the image in
    it, repeats the last). With ``nearest``, after ``replay``, per axis and with s the scale along it:

    - s ≥ 1 (the image was enlarged or left as it is): every valid pixel gets its own value back.
    - s < 1: it gets the value of a pixel at most 1/2 + 1/(2s) away, one next to it at s = 1/2.
    - s ≤ 1, the other way round: ``replay`` of what this function returns is the view again, inside the image.

    At s = 1 all of this holds for ``bilinear`` as well, bit for bit.

    Args:
        tensor: (B, …, h, w), any dtype, h and w as in ``parameters.size``. Gradients flow through
            floating-point tensors.
        parameters: the views.
        mode: as in ``replay``.
        fill: value where the image was not in the view; None as in ``replay``.

    Returns:
        ``(restored, valid)``: (B, …, H, W), dtype and device of ``tensor``, a copy, and (B, H, W) bool.
        Channels_last stays channels_last.

    Raises:
        TypeError: as ``replay``.
        ValueError: as ``replay``, with h and w for H and W.

    Example:
        >>> import torch
        >>> from selftrain_seg.views import WeakStrongViews, replay_inverse
        >>> views = WeakStrongViews((1, 2), scale=(2.0, 2.0), flip_chance=0.0)
        >>> parameters = views.draw(torch.rand(1, 3, 2, 2))._replace(corner=torch.tensor([[3, 2]]))
        >>> replay_inverse(torch.tensor([[[7, 7]]]), parameters)
        (tensor([[[255, 255],
                 [255,   7]]]), tensor([[[False, False],
                 [False,  True]]]))
    """
    mode, value = _check_arguments(tensor, parameters, "size", mode, fill)
    turned, backwards = _position(parameters)
    strides = (parameters.size[1], 1)
    axes = []
    for dim, length in enumerate(parameters.image_size):  # of the image; where turned, the view's other axis lies there
        size, stride, mirrored = (
            torch.where(turned, pair[1 - dim], pair[dim])[:, None] for pair in (parameters.size, strides, backwards)
        )
        scaled, corner = parameters.scaled[:, dim, None], parameters.corner[:, dim, None]
        place = 2 * torch.arange(length, device=tensor.device) + 1
        last = torch.minimum(scaled - corner, size) - 1
        axes.append(_Axis(place * scaled, 2 * length, last, stride, corner, torch.where(mirrored, size - 1, -1)))
    return _sample(tensor, axes[0], axes[1], mode, value)


def _position(parameters: ViewParameters) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """(B,) whether rows of the view are columns of the window; for each axis of the view, whether it runs backwards."""
    turns = parameters.quarter_turns % 4
    turned = turns % 2 == 1
    flips = (parameters.vertically_flipped, parameters.flipped)
    down = ((turns == 1) | (turns == 2)) ^ torch.where(turned, flips[1], flips[0])
    across = (turns >= 2) ^ torch.where(turned, flips[0], flips[1])
    return turned, (down, across)


class _Axis(NamedTuple):
    """Along one dimension, where each pixel of the output takes its value in the input.

    Its place is ``numerator / denominator - first``, a pixel's centre at a half-integer.
    """

    numerator: Tensor  # (B, n)
    denominator: Tensor | int  # (B, 1), even
    last: Tensor  # (B, 1): the input's last pixel
    stride: Tensor  # (B, 1): from one pixel to the next, in the flattened input
    first: Tensor | int = 0  # (B, 1)
    mirror: Tensor | None = None  # (B, 1): the pixel that is counted as the first from the end, -1 for none

    def flat(self, index: Tensor) -> Tensor:
        """(B, n): where pixels are in the flattened input, as far as this dimension tells."""
        if self.mirror is not None:
            index = torch.where(self.mirror < 0, index, self.mirror - index)
        return index * self.stride

    def nearest(self) -> tuple[Tensor, Tensor]:
        """(index, inside), both (B, n): the pixel that contains the place, and whether there is one."""
        index = containing(self.numerator, self.denominator) - self.first
        return self._clamp(index), (index >= 0) & (index <= self.last)

    def bilinear(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """(low, high, weight of high), all (B, n): the pixels whose centres enclose the place."""
        low, weight = enclosing(self.numerator, self.denominator, dtype)
        low = low - self.first
        weight = torch.where((low < 0) | (low >= self.last), 0.0, weight)
        return self._clamp(low), self._clamp(low + 1), weight

    def _clamp(self, index: Tensor) -> Tensor:
        return torch.minimum(index, self.last).clamp(min=0)


def _sample(tensor: Tensor, rows: _Axis, columns: _Axis, mode: str, fill: float) -> tuple[Tensor, Tensor]:
    """The tensor at the places of two axes, and (B, n, m) bool, where these are inside."""
    flat = tensor.flatten(-2)

    def pixels(row: Tensor, column: Tensor) -> Tensor:
        index = rows.flat(row)[:, :, None] + columns.flat(column)[:, None, :]
        places = _over(index.flatten(1), flat).expand(*flat.shape[:-1], -1)
        return flat.gather(-1, places).view(*tensor.shape[:-2], *index.shape[1:])

    row, inside_rows = rows.nearest()
    column, inside_columns = columns.nearest()
    inside = inside_rows[:, :, None] & inside_columns[:, None, :]
    if mode == "nearest":
        out = pixels(row, column)
    else:
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        top, bottom, down = rows.bilinear(dtype)
        left, right, across = columns.bilinear(dtype)
        down, across = _over(down[:, :, None], tensor), _over(across[:, None, :], tensor)
        upper = _mix(pixels(top, left).to(dtype), pixels(top, right).to(dtype), across)
        lower = _mix(pixels(bottom, left).to(dtype), pixels(bottom, right).to(dtype), across)
        out = _mix(upper, lower, down).to(tensor.dtype)
    if out.is_floating_point():
        out.masked_fill_(_over(~inside, tensor), fill)  # in place: half the time
    else:
        out = torch.where(_over(inside, tensor), out, torch.full_like(out[..., :1, :1], fill))
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous():
        out = out.contiguous(memory_format=torch.channels_last)
    return out, inside


def _mix(one: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    """``(1 - weight) · one + weight · other``, in place; bit for bit ``one``, even if infinite, where weight is 0."""
    other.mul_(weight).masked_fill_(weight == 0, -0.0)
    return one.mul_(1 - weight).add_(other)


def _over(value: Tensor, tensor: Tensor) -> Tensor:
    """(B, …) with dimensions behind the first, to be as many as those of ``tensor``."""
    return value.view(value.shape[0], *(1,) * (tensor.ndim - value.ndim), *value.shape[1:])


def _check_arguments(tensor: Any, parameters: Any, size: str, mode: Any, fill: float | None) -> tuple[str, float]:
    _checks.check_tensor(tensor, "tensor")
    if not isinstance(parameters, ViewParameters):
        raise TypeError(f"`parameters`: expected ViewParameters, got {type(parameters).__name__}")
    height, width = getattr(parameters, size)
    batch = parameters.scaled.shape[0]
    if tensor.ndim < 3 or tensor.shape[0] != batch or tuple(tensor.shape[-2:]) != (height, width):
        raise ValueError(
            f"`tensor`: expected (B, …, H, W) = ({batch}, …, {height}, {width}), got {tuple(tensor.shape)}"
        )
    _checks.check_device(tensor, parameters.scaled, "tensor")
    floating = tensor.is_floating_point()
    if mode is None:
        mode = "bilinear" if floating else "nearest"
    _checks.check_choice(mode, "mode", _MODES)
    if mode == "bilinear" and not floating:
        raise TypeError(f"`tensor`: expected a floating-point dtype with mode 'bilinear', got {tensor.dtype}")
    return mode, _checks.fill_value(tensor, fill)
