"""Read logits for selectors with running state: labels, confidences and batch statistics in the same pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from selftrain_seg.ops._blocks import blocks, cut, new_map
from selftrain_seg.ops._library import operator
from selftrain_seg.ops.counts import tally
from selftrain_seg.ops.reading import confidence_of, pixel_scores

LEAST = 1e-30  # lower limit of divisors of probabilities


class Observation(NamedTuple):
    """Labels, confidences and statistics of a batch, without gradient. ŷ is the predicted class, m its confidence."""

    labels: Tensor  # (B, H, W) int64, ŷ
    confidence: Tensor  # (B, H, W) float32, m; 0 at unusable pixels only
    sums: Tensor  # float64, the requested sums in the order of the arguments, then the number of usable pixels
    peaks: Tensor  # (B, C) float32, the largest m of the pixels with ŷ = c, 0 if there are none; empty if not requested


def observe(
    logits: Tensor,
    *,
    valid: Tensor | None = None,
    relative_to: Tensor | None = None,
    moments: bool = False,
    probs: bool = False,
    counts: bool = False,
    peaks: bool = False,
    floor: float = 0.0,
) -> Observation:
    """Read a checked batch of logits (B, C, H, W).

    Args:
        logits: (B, C, H, W).
        valid: (B, H, W) bool.
        relative_to: (C,) float64; probabilities are divided by it and normalised again.
        moments: whether ``sums`` contains Σ m² and Σ m.
        probs: whether ``sums`` contains Σ p_c, C numbers.
        counts: whether ``sums`` contains the number of pixels with ``m >= floor`` for each ŷ, and the number of pixels
            with ``m < floor``: C + 1 numbers.
        peaks: whether to return ``peaks``.
        floor: see ``counts``.
    """
    return Observation(*_observe(logits.detach(), valid, relative_to, [moments, probs, counts, peaks], floor))


def _plain(
    logits: Tensor, valid: Tensor | None, relative_to: Tensor | None, which: list[bool], floor: float
) -> tuple[Tensor, ...]:
    labels, confidence, sums, peaks = _fake(logits, valid, relative_to, which, floor)
    num_classes, sizes = logits.shape[1], sum_sizes(logits, which)
    moments, probs, counts, number = torch.split(sums.zero_(), sizes)
    peaks.zero_()
    if relative_to is not None:
        offset = rearrange(-relative_to.clamp(min=LEAST).log().float(), "c -> c 1 1")
    for block in blocks(logits):
        z = logits[block[0], :, block[1]]
        z = z if relative_to is None else z.float() + offset
        part = pixel_scores(z, cut(valid, block))
        winners, m = part.labels, confidence_of(part.score)
        labels[block], confidence[block] = winners, m
        if which[0]:
            exact = m.flatten().double()
            moments += torch.stack([exact.dot(exact), exact.sum()])
        if which[1]:
            # p_c = exp(z_c - max z) / (1 + s), and 1 / (1 + s) for the winner.
            scale = part.log_norm.neg().exp_().nan_to_num_(nan=0.0)
            shares = torch.where(scale.unsqueeze(1) > 0, part.others * scale.unsqueeze(1), 0.0)
            probs += shares.sum(dim=(0, 2, 3)).double()
            probs.scatter_add_(0, winners.flatten(), scale.flatten().double())
        if which[2]:
            sure = torch.where(m >= floor, winners, num_classes)
            counts += tally(torch.where(m > 0, sure, num_classes + 1), num_classes + 1)
        if any(sizes):
            number += m.count_nonzero()
        if which[3]:
            peaks[block[0]].scatter_reduce_(1, winners.flatten(1), m.flatten(1), "amax")
    return labels, confidence, sums, peaks


def sum_sizes(logits: Tensor, which: list[bool]) -> list[int]:
    """Number of sums of each kind."""
    num_classes = logits.shape[1]
    sizes = [2 if which[0] else 0, num_classes if which[1] else 0, num_classes + 1 if which[2] else 0]
    return [*sizes, 1 if any(which[:3]) else 0]


def _fake(
    logits: Tensor, valid: Tensor | None, relative_to: Tensor | None, which: list[bool], floor: float
) -> tuple[Tensor, ...]:
    sums = logits.new_empty(sum(sum_sizes(logits, which)), dtype=torch.float64)
    peaks = logits.new_empty(logits.shape[:2] if which[3] else (0, 0), dtype=torch.float32)
    return new_map(logits, torch.int64), new_map(logits, torch.float32), sums, peaks


_observe = operator(
    "observe(Tensor logits, Tensor? valid, Tensor? relative_to, bool[] which, float floor)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _plain,
    _fake,
    kernel="launch",
)
