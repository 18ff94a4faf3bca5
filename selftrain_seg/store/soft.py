"""Compact soft labels: the k largest entries of each pixel, in steps of 1/255."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.ops._blocks import blocks
from selftrain_seg.ops._winner import winner

__all__ = ["expand_soft"]

STEPS = 255
MILLION = 1_000_000
# Tolerance of the sum of a soft label: bfloat16 rounds each entry by up to 1/512 of it.
_TOLERANCE = 0.01


class Packed(NamedTuple):
    """planes (B, 2k, H, W) uint8; wrong (B,) bool; dropped (B, 2) int64, sum and maximum over pixels in millionths."""

    planes: Tensor
    wrong: Tensor
    dropped: Tensor


def expand_soft(packed: Tensor, num_classes: int) -> Tensor:
    """Expand the compact soft labels of a round to dense ones.

    Entry c of a pixel is ``q_i / 255`` if c is the stored class ``c_i``, else 0. The q sum to 255, so the entries sum
    to 1. In pixels that were not selected, all entries are 0.

    Call it on the device: the compact form has ``2k`` bytes per pixel to transfer, the dense one ``4C``.

    Args:
        packed: (B, 2k, H, W) uint8, as a DataLoader batches them from :meth:`StoredRound.dataset` with the field
            ``"soft"``: the k classes in descending order of their entries, then their q.
        num_classes: C, larger than every class in ``packed``.

    Returns:
        (B, C, H, W) float32 on the device of ``packed``. With ``t`` the sum of a pixel's entries beyond the k-th,
        each of its entries is off by less than ``t + 1/255``. ``soft_dropped`` in the manifest has the mean and the
        maximum of t in the round.

    Raises:
        TypeError: ``packed`` is not a uint8 tensor; ``num_classes`` is not an int.
        ValueError: ``packed`` is not (B, 2k, H, W); ``num_classes`` is below 1.

    Example:
        >>> import torch
        >>> from selftrain_seg.store import expand_soft
        >>> packed = torch.tensor([2, 0, 204, 51], dtype=torch.uint8).view(1, 4, 1, 1)
        >>> expand_soft(packed, 3).flatten()
        tensor([0.2000, 0.0000, 0.8000])
    """
    _checks.check_integer(packed, "packed")
    if packed.dtype != torch.uint8:
        raise TypeError(f"`packed`: expected dtype torch.uint8, got {packed.dtype}")
    if packed.ndim != 4 or packed.shape[1] == 0 or packed.shape[1] % 2:
        raise ValueError(f"`packed`: expected (B, 2k, H, W), got {tuple(packed.shape)}")
    _checks.check_count(num_classes, "num_classes")
    k = packed.shape[1] // 2
    shape = (packed.shape[0], num_classes, *packed.shape[2:])
    dense = torch.zeros(shape, dtype=torch.float32, device=packed.device)
    # Write the largest entry last: entries that are 0 have class 0 and must not overwrite it.
    for i in reversed(range(k)):
        dense.scatter_(1, packed[:, i : i + 1].long(), packed[:, k + i : k + i + 1].float() / STEPS)
    return dense


def pack_soft(soft: Tensor, top_k: int) -> Packed:
    """Keep the ``top_k`` largest entries, scaled to sum to 1 and rounded by the method of largest remainders."""
    batch, num_classes, height, width = soft.shape
    k = min(top_k, num_classes)
    planes = torch.empty(batch, 2 * k, height, width, dtype=torch.uint8, device=soft.device)
    wrong = torch.zeros(batch, dtype=torch.bool, device=soft.device)
    dropped = torch.zeros(batch, 2, dtype=torch.int64, device=soft.device)
    for images, rows in blocks(soft):
        part = soft[images, :, rows].detach().float()
        wrong[images] |= wrong_soft(part).flatten(1).any(1)
        classes, values = _largest(part, k)
        kept = values.sum(1, keepdim=True)
        steps = _rounded(values * torch.where(kept > 0, STEPS / kept, 0.0))
        planes[images, :k, rows] = torch.where(steps > 0, classes, 0).to(torch.uint8)
        planes[images, k:, rows] = steps.to(torch.uint8)
        # Integers (millionths), so that the sum does not depend on the order of summation.
        lost = torch.where(kept > 0, MILLION * (1.0 - kept), 0.0).clamp_(min=0.0).round_().long().flatten(1)
        dropped[images, 0] += lost.sum(1)
        dropped[images, 1] = torch.maximum(dropped[images, 1], lost.amax(1))
    return Packed(planes, wrong, dropped)


def wrong_soft(soft: Tensor) -> Tensor:
    """(B, H, W) bool: pixels whose entries are negative or NaN, or sum neither to 1 nor to 0."""
    total = soft.float().sum(1)
    fits = ((total - 1.0).abs() <= _TOLERANCE) | (total == 0)
    return ~(fits & (soft.amin(1) >= 0))


def _largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(b, k, h, w) classes and entries in descending order; of equal entries, the lower class comes first."""
    classes, tops = [], []
    for i in range(k):
        top, label, _ = winner(values)
        classes.append(label.unsqueeze(1))
        tops.append(top.clamp(min=0.0))
        if i + 1 < k:
            values = values.scatter(1, classes[-1], -1.0)
    return torch.cat(classes, dim=1), torch.cat(tops, dim=1)


def _rounded(scaled: Tensor) -> Tensor:
    """(b, k, h, w) int32 that sum to 255 over k, or 0: the floor, plus 1 for the largest remainders."""
    floors = scaled.floor()
    fractions = scaled - floors
    steps = floors.to(torch.int32)
    left = torch.where(scaled.sum(1) > 0, STEPS, 0) - steps.sum(1)
    for i in range(scaled.shape[1]):
        before = (fractions[:, :i] >= fractions[:, i : i + 1]).sum(1)
        after = (fractions[:, i + 1 :] > fractions[:, i : i + 1]).sum(1)
        steps[:, i] += before + after < left
    return steps
