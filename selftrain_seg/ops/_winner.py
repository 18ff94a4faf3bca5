"""Argmax over classes and exponentials, in the fastest form for each device."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg.ops._blocks import on_cpu

_LOG2_E = 1.4426950408889634


def winner(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the largest value over classes at each pixel of a (b, C, h, w) float32 block.

    Returns:
        The largest value (b, 1, h, w), its class (b, h, w) int64 (the first of ties), and ``values`` minus the largest
        one. If a value is NaN or the largest is infinite, the class is arbitrary and the differences contain NaN.
    """
    if not on_cpu(values):
        top, labels = values.max(dim=1, keepdim=True)
        return top, labels.squeeze(1), values - top
    # On CPU, torch's max with indices is not vectorised over the inner dimensions and five times slower than this.
    values = values.contiguous()
    top = values.amax(dim=1, keepdim=True)
    gaps, num_classes = values - top, values.shape[1]
    countdown = torch.arange(num_classes, 0, -1, dtype=values.dtype).view(-1, 1, 1)
    # Only winners keep their countdown, all others fall far below; so the maximum identifies the first winner.
    index = num_classes - torch.add(countdown, gaps, alpha=1e38).amax(dim=1)
    return top, index.long().clamp_(0, num_classes - 1), gaps


def exponential(values: Tensor, *, less: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """``exp(values)`` or ``exp(values - less)``, to a few roundings; ``out`` may be ``values``."""
    if not on_cpu(values):
        return torch.exp(values if less is None else values - less, out=out)
    # On CPU, exp calls a vendor library that can take three times as long as exp2.
    if less is not None:
        return torch.add(less * -_LOG2_E, values, alpha=_LOG2_E, out=out).exp2_()
    return torch.mul(values, _LOG2_E, out=out).exp2_()
