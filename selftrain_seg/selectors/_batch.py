"""One pass over the logits for the selectors that keep running statistics."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selftrain_seg._numerics import blocks
from selftrain_seg.confidence._scores import pixel_scores


class Reading(NamedTuple):
    """Label and confidence of every pixel, and the batch's sums; unusable pixels (NaN) have confidence 0."""

    labels: Tensor  # (B, H, W) int64
    confidence: Tensor  # (B, H, W) float32
    usable: Tensor  # (B, H, W) bool
    probability_sums: Tensor | None  # (C,) float64, Σ p_c over usable pixels


def read(logits: Tensor, *, sum_probabilities: bool = False, offset: Tensor | None = None) -> Reading:
    """Read a batch of logits (B, C, H, W), with a value (C,) added to each class's."""
    shape = (logits.shape[0], *logits.shape[-2:])
    labels = torch.empty(shape, dtype=torch.int64, device=logits.device)
    confidence = torch.empty(shape, dtype=torch.float32, device=logits.device)
    sums = torch.zeros(logits.shape[1], dtype=torch.float64, device=logits.device) if sum_probabilities else None
    for images, rows in blocks(logits):
        block = logits[images, :, rows]
        part = pixel_scores(block if offset is None else block.float() + offset.view(-1, 1, 1))
        labels[images, rows] = part.labels
        confidence[images, rows] = part.log_confidence.exp().nan_to_num(nan=0.0)
        if sums is not None:
            # p_c = exp(z_c - max z) / (1 + s); the winner's 1 / (1 + s) is the confidence.
            scale = (-part.log_norm).exp().nan_to_num(nan=0.0)
            others = torch.where(scale.unsqueeze(1) > 0, part.others * scale.unsqueeze(1), 0.0)
            sums += others.sum(dim=(0, 2, 3)).double() + class_sums(part.labels, scale, len(sums))
    return Reading(labels, confidence, confidence > 0, sums)


def class_sums(labels: Tensor, weights: Tensor, num_classes: int) -> Tensor:
    """Sum (B, H, W) weights by label: (C,) float64. No host synchronisation, unlike bincount on a GPU."""
    sums = torch.zeros(num_classes, dtype=torch.float64, device=labels.device)
    return sums.scatter_add_(0, labels.flatten(), weights.flatten().double())


def moving_average(old: Tensor, new: Tensor, momentum: float, count: Tensor) -> Tensor:
    """``momentum · old + (1 - momentum) · new``, but ``old`` where the batch had nothing to count."""
    keep = 1.0 - (1.0 - momentum) * (count > 0).double()
    return keep * old + (1.0 - keep) * new
