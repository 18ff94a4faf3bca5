"""Cut one window out of each image in a single copy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selftrain_seg.ops._library import differentiable, operator


def windows(tensor: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """Copy a window (h, w) of each image of a (B, …, H, W) tensor; it must lie inside.

    Args:
        tensor: any dtype; gradients flow.
        top: (B,) int64, first row.
        left: (B,) int64, first column.
        size: (h, w).

    Returns:
        (B, …, h, w), with the dimensions in the same order in memory as in ``tensor``.
    """
    out: Tensor = _windows(tensor, top, left, *size)
    return out


def _anywhere(tensor: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Copy the windows as rows of a strided view that contains every possible window."""
    if tensor.numel() == 0:
        return _fake(tensor, top, left, height, width)
    strides, order = tensor.stride(), _order(tensor)
    shape = (*tensor.shape[:-2], height, width)
    rows, columns = tensor.shape[-2] - height, tensor.shape[-1] - width
    starts = 1 + (tensor.shape[0] - 1) * strides[0] + rows * strides[-2] + columns * strides[-1]
    every = tensor.as_strided((starts, *(shape[dim] for dim in order)), (1, *(strides[dim] for dim in order)))
    image = torch.arange(tensor.shape[0], device=tensor.device)
    out = every.index_select(0, image * strides[0] + top * strides[-2] + left * strides[-1])
    return _in_order(out, order)


def _fake(tensor: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    shape, order = (*tensor.shape[:-2], height, width), _order(tensor)
    return _in_order(tensor.new_empty([shape[dim] for dim in (0, *order)]), order)


def _order(tensor: Tensor) -> list[int]:
    """All dimensions except the first, by descending stride."""
    strides = tensor.stride()
    return sorted(range(1, tensor.ndim), key=lambda dim: -strides[dim])


def _in_order(out: Tensor, order: list[int]) -> Tensor:
    return out.permute(0, *(1 + order.index(dim) for dim in range(1, out.ndim)))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensor, top, left, _, _ = inputs
    ctx.save_for_backward(top, left)
    ctx.shape = tensor.shape


def _backward(ctx: Any, grad: Tensor, top: Tensor, left: Tensor) -> Tensor:
    rows = top[:, None] + torch.arange(grad.shape[-2], device=grad.device)
    columns = left[:, None] + torch.arange(grad.shape[-1], device=grad.device)
    places = (rows[:, :, None] * ctx.shape[-1] + columns[:, None, :]).flatten(1)
    places = places.view(places.shape[0], *(1,) * (grad.ndim - 3), places.shape[1])
    flat = grad.flatten(-2)
    out = flat.new_zeros((*ctx.shape[:-2], ctx.shape[-2] * ctx.shape[-1]))
    return out.scatter_(-1, places.expand_as(flat), flat).view(ctx.shape)


_windows = operator(
    "windows(Tensor tensor, Tensor top, Tensor left, SymInt height, SymInt width) -> Tensor", _anywhere, _fake
)
differentiable("windows", _save, _backward)
