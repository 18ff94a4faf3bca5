"""Select and weight pixels from (B, H, W) maps of labels and confidences."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg.ops._library import operator


def decide(
    labels: Tensor, confidence: Tensor, thresholds: Tensor, *, strict: bool = False, ignore_index: int
) -> Tensor:
    """Keep labels (B, H, W) where the confidence reaches (``strict``: exceeds) the threshold of the class.

    ``thresholds`` are (C,) or, per image, (B, C); a confidence of 0 marks an unusable pixel.
    """
    decided: Tensor = _decide(labels, confidence, thresholds, strict, ignore_index)
    return decided


def weigh(
    labels: Tensor, confidence: Tensor, belief: Tensor, state: Tensor, *, sigmas: float, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Labels (B, H, W) of all usable pixels, and their weights ``exp(-min(belief - μ, 0)² sigmas² / (2 σ²))``, float32.

    A ``confidence`` of 0 marks an unusable pixel, which gets weight 0; ``state`` is (σ², μ), float64.
    """
    weighed: tuple[Tensor, Tensor] = _weigh(labels, confidence, belief, state, sigmas, ignore_index)
    return weighed


def _decide_plain(labels: Tensor, confidence: Tensor, thresholds: Tensor, strict: bool, ignore_index: int) -> Tensor:
    # A confidence of 0 is below the smallest positive threshold.
    bar = thresholds.float().expand(labels.shape[0], -1)
    bar = bar.gather(1, labels.flatten(1)).view_as(confidence)
    keep = confidence > bar if strict else (confidence >= bar) & (confidence > 0)
    return torch.where(keep, labels, ignore_index)


def _weigh_plain(
    labels: Tensor, confidence: Tensor, belief: Tensor, state: Tensor, sigmas: float, ignore_index: int
) -> tuple[Tensor, Tensor]:
    usable, below = confidence > 0, (belief - state[1].float()).clamp(max=0.0)
    # A variance of exactly 0 (all pixels equal) gives weight 1 at the mean and 0 below it.
    spread = (2.0 * state[0]).clamp(min=1e-30).float()
    weights = torch.exp(-((below * sigmas) ** 2) / spread) * usable
    return torch.where(usable, labels, ignore_index), weights


_decide = operator(
    "decide(Tensor labels, Tensor confidence, Tensor thresholds, bool strict, int ignore_index) -> Tensor",
    _decide_plain,
    lambda labels, *_: torch.empty_like(labels),
    kernel="launch_state",
)
_weigh = operator(
    "weigh(Tensor labels, Tensor confidence, Tensor belief, Tensor state, float sigmas, int ignore_index)"
    " -> (Tensor, Tensor)",
    _weigh_plain,
    lambda labels, confidence, *_: (torch.empty_like(labels), torch.empty_like(confidence)),
    kernel="launch_state",
)
