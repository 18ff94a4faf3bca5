"""The losses in plain torch operations, and the parts that they share with the fused operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from einops import repeat
from torch import Tensor

from selftrain_seg.ops._blocks import wide
from selftrain_seg.ops._winner import exponential

LOG_ZERO = -1e4  # replaces log p = -inf of a class masked out by its logit, so that p log p is 0


def plain_loss(
    logits: Tensor,
    target: Tensor,
    pixel_weight: Tensor | None,
    image_weight: Tensor | None,
    class_weight: Tensor | None,
    exponent: Tensor | None,
    divisor: Tensor | None,
    regulariser: str,
    factors: Sequence[float],
    normalize: str,
    ignore_index: int,
) -> Tensor:
    """Compute ``weighted_loss`` in plain torch operations, which save tensors of the size of the logits."""
    labels = read_labels(target, ignore_index)
    used = torch.ones_like(labels.valid) if factors[2] else labels.valid
    z = torch.where(used.unsqueeze(1), logits, 0)  # 0 · NaN is NaN, so unused logits are replaced
    log_p = torch.log_softmax(z, 1, dtype=wide(z))
    if labels.soft is None:
        nll = -log_p.gather(1, labels.at).squeeze(1)
    else:
        nll = -(log_p.clamp(min=torch.finfo(log_p.dtype).min) * labels.soft.to(log_p.dtype)).sum(1)
    values = {
        "": lambda: nll,
        "kld": lambda: -log_p.mean(1),
        "entropy": lambda: -(log_p.exp() * log_p.clamp(min=LOG_ZERO)).sum(1),
        "square": lambda: log_p.exp().square().sum(1),
        "reverse": lambda: -torch.expm1(-nll),
    }
    image_weight, exponent = (as_map(value, nll) for value in (image_weight, exponent))
    three = parts(labels, nll, pixel_weight, image_weight, class_weight, exponent)
    total: Any = 0.0
    for kind, part, factor, each in zip(("", regulariser, "entropy"), three, factors, range(3), strict=True):
        if factor and normalize == "none":
            total = total + factor * term(values[kind](), part)
        elif factor:
            by = size(part, normalize, each) if divisor is None else divisor
            total = total + factor * (term(values[kind](), part).sum() / torch.where(by == 0, 1, by).to(nll.dtype))
    if isinstance(total, Tensor):
        return total
    nothing = torch.where(torch.zeros_like(used), nll, 0)  # zero, but connected to the graph
    return nothing if normalize == "none" else nothing.sum()


class Labels(NamedTuple):
    """Labels and the pixels that have one."""

    valid: Tensor  # (b, h, w) bool: which pixels have a label
    at: Tensor  # (b, 1, h, w) int64: the labels, 0 where there is none; all 0 for soft labels
    soft: Tensor | None  # (b, C, h, w)
    mass: Tensor | None  # (b, h, w): sum of the soft labels


class Part(NamedTuple):
    """One of the three sums."""

    region: Tensor  # (b, h, w) bool: the pixels of the sum
    weights: tuple[Tensor | None, ...]  # (b, h, w): factors of their values


def read_labels(target: Tensor, ignore_index: int) -> Labels:
    """Read the hard or soft labels of a batch or block."""
    if target.ndim == 4:
        mass = target.sum(1, dtype=wide(target))
        return Labels(mass != 0, torch.zeros_like(mass, dtype=torch.int64).unsqueeze(1), target, mass)
    y = target.long()  # as uint8, the label 156 would equal an ignore_index of -100
    valid = y != ignore_index
    return Labels(valid, (y * valid).unsqueeze(1), None, None)  # where() is three times slower on irregular masks


def as_map(value: Tensor | None, like: Tensor) -> Tensor | None:
    """Expand (B,) to (B, H, W)."""
    if value is None or value.ndim == like.ndim:
        return value
    return repeat(value, "b -> b h w", h=like.shape[1], w=like.shape[2])


def parts(
    labels: Labels,
    nll: Tensor,
    pixel_weight: Tensor | None,
    image_weight: Tensor | None,
    class_weight: Tensor | None,
    exponent: Tensor | None,
) -> tuple[Part, Part, Part]:
    """Region and weights of the three sums."""
    valid = labels.valid
    own = None if class_weight is None else class_weight[labels.at.squeeze(1)]
    believed = None if exponent is None else exponential(-exponent * nll.detach().clamp(max=-LOG_ZERO))
    regularised = valid if image_weight is None else valid & (image_weight != 0)
    return (
        Part(valid, (own, pixel_weight, believed)),
        Part(regularised, (pixel_weight, image_weight)),
        Part(~valid, (pixel_weight,)),
    )


def term(values: Tensor, part: Part) -> Tensor:
    """Values times weights; 0 outside the region, even for NaN."""
    for weight in part.weights:
        if weight is not None:
            values = values * torch.where(part.region, weight, 0).to(values.dtype)
    return torch.where(part.region, values, 0)


def size(part: Part, normalize: str, each: int) -> Tensor:
    """The divisor of a sum, before 0 is replaced: () float64."""
    region, own = part.region, part.weights[0]
    if normalize == "labelled" or (normalize == "weights" and (each or own is None)):
        return region.sum(dtype=torch.float64)
    if normalize == "weights" and own is not None:
        return torch.where(region, own, 0).sum(dtype=torch.float64)
    return region.new_full((), region.numel() if normalize == "all" else 1, dtype=torch.float64)
