"""Thresholds that follow quantiles of the confidences, image by image (IAST)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from selftrain_seg.ops._library import operator

CERTAIN = 0.999  # replaces a threshold of 1
_BITS = 30  # number of bits of a float32 in [0, 1]


def adapt(
    labels: Tensor,
    confidence: Tensor,
    thresholds: Tensor,
    *,
    portion: float,
    momentum: float,
    gamma: float,
    by_image: bool,
) -> Tensor:
    """Return thresholds θ (S + 1, C) float64: the given ones, then those after each of S images.

    ``θ_c ← momentum · θ_c + (1 - momentum) · ψ_c``, with 0.999 in place of 1 or more. ψ_c is the quantile at
    ``1 - portion · θ_c^gamma``, linearly interpolated, of θ_c and the confidences of the pixels labelled c; without
    such pixels θ_c does not change. Without ``by_image`` the batch is treated as one image. A confidence of 0 marks an
    unusable pixel. The GPU kernels count confidences in bins of 1/256 of log-odds and assume them uniform in each bin,
    which is less than 0.001 off; all other implementations are exact.
    """
    moved: Tensor = _adapt(labels, confidence, thresholds, portion, momentum, gamma, by_image)
    return moved


def _plain(
    labels: Tensor,
    confidence: Tensor,
    thresholds: Tensor,
    portion: float,
    momentum: float,
    gamma: float,
    by_image: bool,
) -> Tensor:
    history = _fake(labels, confidence, thresholds, portion, momentum, gamma, by_image)
    history[:] = thresholds
    if not labels.numel():
        return history
    steps, rows = len(history) - 1, len(thresholds) + 1  # one more row for unusable pixels
    group = torch.where(confidence > 0, labels, rows - 1)
    if by_image:
        group = group + rows * rearrange(torch.arange(steps, device=labels.device), "b -> b 1 1")
    # One radix sort of integers groups the confidences by image and class in ascending order: the bit patterns of
    # floats in [0, 1] have the order of their values.
    keys = rearrange((group << _BITS) | confidence.view(torch.int32), "b h w -> (b h w)").sort().values
    edges = torch.arange(steps * rows + 1, device=labels.device) << _BITS
    edge = torch.searchsorted(keys, edges)
    starts, sizes = (rearrange(x, "(s r) -> s r", r=rows)[:, :-1] for x in (edge[:-1], edge.diff()))
    groups = rearrange(edges[:-1], "(s r) -> s r", r=rows)[:, :-1]
    for step, (group, start, size) in enumerate(zip(groups, starts, sizes, strict=True)):
        theta = history[step]  # each step depends on the previous one
        psi = _quantile(theta, 1.0 - portion * theta**gamma, keys, group, start, size)
        moved = momentum * theta + (1.0 - momentum) * psi
        history[step + 1] = torch.where(size > 0, torch.where(moved < 1.0, moved, CERTAIN), theta)
    return history


def _quantile(theta: Tensor, share: Tensor, keys: Tensor, group: Tensor, start: Tensor, size: Tensor) -> Tensor:
    """A quantile (C,) of θ and the confidences of each class, given their start in ``keys`` and their number."""
    # A float32 is below θ if and only if it is below the smallest float32 that is at least θ.
    nearest = theta.float()
    least = torch.where(nearest.double() < theta, torch.nextafter(nearest, nearest + 1), nearest)
    own = torch.searchsorted(keys, group | least.view(torch.int32)) - start  # rank of θ among the confidences
    place = share.clamp(0.0, 1.0) * size

    def element(index: Tensor) -> Tensor:
        """The index-th smallest of the class's confidences and θ_c."""
        at = start + torch.where(index > own, index - 1, index)
        bits = keys[at.clamp(max=len(keys) - 1)] & ((1 << _BITS) - 1)
        return torch.where(index == own, theta, bits.int().view(torch.float32).double())

    low = place.floor().long()
    below, above = element(low), element(torch.minimum(low + 1, size))
    return below + (above - below) * (place - low)


def _fake(labels: Tensor, confidence: Tensor, thresholds: Tensor, *rest: object) -> Tensor:
    return thresholds.new_empty((labels.shape[0] if rest[-1] else 1) + 1, len(thresholds))


_adapt = operator(
    "adapt(Tensor labels, Tensor confidence, Tensor thresholds, float portion, float momentum, float gamma,"
    " bool by_image) -> Tensor",
    _plain,
    _fake,
    kernel="launch_state",
)
