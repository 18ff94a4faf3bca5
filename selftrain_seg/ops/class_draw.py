"""Draw half of the classes of each image and mark their pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selftrain_seg.ops._library import operator


def draw_classes(labels: Tensor, keys: Tensor, ignore_index: int, *, up: bool) -> Tensor:
    """Mark the pixels of the half of each image's classes with the largest keys.

    Args:
        labels: (B, H, W), integer; values outside [0, V) are not classes.
        keys: (B, V) int64, not negative: key of each class.
        ignore_index: label of the pixels without a class.
        up: whether half of an odd number is rounded up.

    Returns:
        (B, H, W) bool.
    """
    among: Tensor = _draw_classes(labels, keys, ignore_index, up)
    return among


def _anywhere(labels: Tensor, keys: Tensor, ignore_index: int, up: bool) -> Tensor:
    values = keys.shape[1]
    wide = labels.long()
    outside = (wide < 0) | (wide >= values) | (wide == ignore_index)
    flat = torch.where(outside, values, wide).flatten(1)
    present = torch.zeros(len(flat), values + 1, dtype=torch.bool, device=flat.device).scatter_(1, flat, True)
    present = present.narrow(1, 0, values)
    kept = torch.where(present, keys, -1)
    half = (present.sum(1, keepdim=True) + int(up)) // 2
    least = kept.sort(dim=1, descending=True).values.gather(1, (half - 1).clamp(min=0))
    drawn = torch.constant_pad_nd(present & (keys >= least) & (half > 0), (0, 1))
    return drawn.gather(1, flat).view(labels.shape)


def _fake(labels: Tensor, *_: Any) -> Tensor:
    return labels.new_empty(labels.shape, dtype=torch.bool)


_draw_classes = operator(
    "draw_classes(Tensor labels, Tensor keys, int ignore_index, bool up) -> Tensor",
    _anywhere,
    _fake,
    kernel="launch_maps",
)
