"""Scale, crop, flip and rotate a whole batch, and undo it, by indices computed in integers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from selftrain_seg import _checks

__all__ = ["ViewParameters", "replay", "replay_inverse"]

_MODES = ("bilinear", "nearest")


class ViewParameters(NamedTuple):
    """Parameters of the views of a batch, as drawn by ``WeakStrongViews``.

    The first seven fields are the geometry. The image is resized to ``scaled``; a window is cut at ``corner``, which
    may stick out at the bottom and on the right; the window is mirrored if ``flipped`` or ``vertically_flipped``, then
    rotated counterclockwise by ``quarter_turns``. The result has the ``size`` (h, w) of the view, so with one or three
    quarter turns the window is (w, h). The other fields make the strong view from the weak one, in their order.

    Attributes:
        image_size: (H, W) of the images, two ints.
        size: (h, w) of the views, two ints.
        scaled: (B, 2) int64, height and width of the scaled image, at least 1.
        corner: (B, 2) int64, (top, left) of the window in the scaled image.
        flipped: (B,) bool, whether the window is mirrored left to right.
        vertically_flipped: (B,) bool, whether it is mirrored top to bottom.
        quarter_turns: (B,) int64, number of rotations by 90° counterclockwise, as in ``torch.rot90``; modulo 4.
        jitter: (B, 4) float32, factors of brightness, contrast and saturation, and the shift of the hue in turns;
            (1, 1, 1, 0) keeps the colours.
        grey: (B,) bool, whether the image is converted to greyscale.
        blur_sigma_px: (B,) float32, standard deviation of the blur in pixels of the view; 0 for no blur.
        cut_out: (B, h, w) bool, the pixels of the strong view that are cut out.
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
    """Apply the geometry of the views to a tensor of full images, such as labels or a teacher's probabilities.

    ``WeakStrongViews`` makes the weak view with this function, so the result matches it pixel by pixel. With pixel
    centres at half-integers, row i of the view shows row ``(top + i + 1/2) · H / H_scaled`` of the image. ``nearest``
    takes the row that contains this position; ``bilinear`` interpolates between the two rows whose centres enclose it
    and repeats the last row at the border. Columns follow the same formula, counted from the right if flipped.
    Positions are computed in integers and are exact; a position at the centre of a pixel copies its value bit for bit,
    infinities included. Flips and quarter turns only permute pixels (bilinear: up to rounding, as the order of
    summation changes). No antialiasing below scale 1. No host synchronisation.

    Args:
        tensor: (B, …, H, W), any dtype, H and W as in ``parameters.image_size``. Resize a network's output of lower
            resolution first. Gradients flow through floating-point tensors.
        parameters: the parameters of the views.
        mode: ``"bilinear"`` (floating point only, computed in float32 or float64) or ``"nearest"``; None means
            bilinear for floating-point tensors and nearest for all others.
        fill: value where the view lies outside the image. None means 255, the ignore label, for label maps (integer
            tensors (B, H, W) or (B, 1, H, W)), and 0 for all others.

    Returns:
        (B, …, h, w), dtype and device of ``tensor``, a copy. Channels_last stays channels_last.

    Raises:
        TypeError: ``tensor`` is not a tensor, or not floating point with ``mode="bilinear"``; ``parameters`` is not
            a ViewParameters; ``fill`` is not a number.
        ValueError: ``tensor`` is not (B, …, H, W) with the B, H and W of ``parameters``, or on another device;
            ``mode`` is not one of those listed; the dtype of ``tensor`` cannot hold ``fill``.

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
    for axis, size in enumerate(parameters.size):  # of the view; if turned, it shows the other axis of the image
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
    """Map a tensor of the views, such as a student's output, back to the full images.

    A pixel of the image is valid if its centre lies inside a pixel of the view. ``nearest`` copies the value of that
    pixel; ``bilinear`` interpolates between the pixels of the view whose centres enclose it, and repeats the last one
    at the border. After ``replay`` with ``nearest``, the following holds along each axis, with s the scale along it:

    - s ≥ 1 (enlarged or unchanged): every valid pixel gets its own value back.
    - s < 1: every valid pixel gets the value of a pixel at most 1/2 + 1/(2s) away, a direct neighbour at s = 1/2.
    - s ≤ 1: ``replay`` of the result reproduces the view, inside the image.

    At s = 1 this also holds for ``bilinear``, bit for bit.

    Args:
        tensor: (B, …, h, w), any dtype, h and w as in ``parameters.size``. Gradients flow through
            floating-point tensors.
        parameters: the parameters of the views.
        mode: as in ``replay``.
        fill: value of the pixels that the view does not show; None as in ``replay``.

    Returns:
        ``(restored, valid)``: a copy (B, …, H, W), dtype and device of ``tensor``, and (B, H, W) bool.
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
    for dim, length in enumerate(parameters.image_size):  # of the image; if turned, it is the other axis of the view
        size, stride, mirrored = (
            torch.where(turned, pair[1 - dim], pair[dim])[:, None] for pair in (parameters.size, strides, backwards)
        )
        scaled, corner = parameters.scaled[:, dim, None], parameters.corner[:, dim, None]
        place = 2 * torch.arange(length, device=tensor.device) + 1
        last = torch.minimum(scaled - corner, size) - 1
        axes.append(_Axis(place * scaled, 2 * length, last, stride, corner, torch.where(mirrored, size - 1, -1)))
    return _sample(tensor, axes[0], axes[1], mode, value)


def _position(parameters: ViewParameters) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return (B,) whether the view is transposed, and for each axis of the view (B,) whether it is reversed."""
    turns = parameters.quarter_turns % 4
    turned = turns % 2 == 1
    flips = (parameters.vertically_flipped, parameters.flipped)
    down = ((turns == 1) | (turns == 2)) ^ torch.where(turned, flips[1], flips[0])
    across = (turns >= 2) ^ torch.where(turned, flips[0], flips[1])
    return turned, (down, across)


class _Axis(NamedTuple):
    """Source positions of the output pixels along one dimension.

    A position is ``numerator / denominator - first``, with pixel centres at half-integers.
    """

    numerator: Tensor  # (B, n)
    denominator: Tensor | int  # (B, 1), even
    last: Tensor  # (B, 1): index of the last pixel of the input
    stride: Tensor  # (B, 1): between neighbouring pixels in the flattened input
    first: Tensor | int = 0  # (B, 1)
    mirror: Tensor | None = None  # (B, 1): index i becomes mirror - i; -1 for no mirroring

    def flat(self, index: Tensor) -> Tensor:
        """(B, n): the contribution of this dimension to the index in the flattened input."""
        if self.mirror is not None:
            index = torch.where(self.mirror < 0, index, self.mirror - index)
        return index * self.stride

    def nearest(self) -> tuple[Tensor, Tensor]:
        """(index, inside), both (B, n): the pixel that contains the position, and whether there is one."""
        index = torch.div(self.numerator, self.denominator, rounding_mode="floor") - self.first
        return self._clamp(index), (index >= 0) & (index <= self.last)

    def bilinear(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """(low, high, weight of high), all (B, n): the pixels whose centres enclose the position."""
        from_centre = self.numerator - self.denominator // 2
        low = torch.div(from_centre, self.denominator, rounding_mode="floor")
        rest = from_centre - low * self.denominator
        low = low - self.first
        weight = rest.to(dtype) / self.denominator
        weight = torch.where((low < 0) | (low >= self.last), 0.0, weight)
        return self._clamp(low), self._clamp(low + 1), weight

    def _clamp(self, index: Tensor) -> Tensor:
        return torch.minimum(index, self.last).clamp(min=0)


def _sample(tensor: Tensor, rows: _Axis, columns: _Axis, mode: str, fill: float) -> tuple[Tensor, Tensor]:
    """Sample the tensor at the positions of two axes; also return (B, n, m) bool, which of them are inside."""
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
        out.masked_fill_(_over(~inside, tensor), fill)  # in place takes half the time
    else:
        out = torch.where(_over(inside, tensor), out, torch.full_like(out[..., :1, :1], fill))
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous():
        out = out.contiguous(memory_format=torch.channels_last)
    return out, inside


def _mix(one: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    """Compute ``(1 - weight) · one + weight · other`` in place; exactly ``one`` (even infinite) where weight is 0."""
    other.mul_(weight).masked_fill_(weight == 0, -0.0)
    return one.mul_(1 - weight).add_(other)


def _over(value: Tensor, tensor: Tensor) -> Tensor:
    """Insert dimensions after the first one, up to the number of dimensions of ``tensor``."""
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
