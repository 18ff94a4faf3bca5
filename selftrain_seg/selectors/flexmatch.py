"""Curriculum thresholds by class (FlexMatch)."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg._state import Stateful
from selftrain_seg.distributed import all_reduce_sum
from selftrain_seg.selectors._decide import label, observe
from selftrain_seg.types import IGNORE_INDEX, PseudoLabels

__all__ = ["FlexMatchSelector"]


class FlexMatchSelector(Stateful):
    """Select by a threshold that is lower for classes which few pixels are sure of.

    With σ_c the share of pixels predicted as c with ``m ≥ τ``, ``β_c = σ_c / max(max_c σ_c, 1 - Σ_c σ_c)`` and
    ``T_c = τ β_c / (2 - β_c)``; ``y = ŷ`` where ``m ≥ T_ŷ``, else ``ignore_index``. The share of pixels not yet
    sure of anything, ``1 - Σ σ``, keeps all thresholds low at first. Differs from the paper: σ is an exponential
    average over batches, ``σ ← λ σ + (1 - λ) σ_batch`` from 0, in place of a record of every sample's last label,
    which does not scale to pixels.

    Args:
        num_classes: C, at least 2.
        threshold: τ in [0, 1]. FlexMatch: 0.95.
        momentum: λ in [0, 1].
        ignore_index: label of the pixels that are not selected; outside [0, C).

    Attributes:
        running: (C + 1,) float64, all of the state: σ, and the share of pixels not sure of anything.

    State / distributed:
        In ``eval()`` mode it stays as it is. Counts are added over ranks by one all-reduce a call, so σ
        is that of one process with the joined batch.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range.

    References:
        Zhang et al., "FlexMatch: Boosting Semi-Supervised Learning with Curriculum Pseudo Labeling", NeurIPS
        2021, Eq. 5-7 and 11.

    Example:
        >>> import torch
        >>> selector = FlexMatchSelector(2, threshold=0.9, momentum=0.0)
        >>> probs = torch.tensor([0.99, 0.99, 0.05, 0.7])  # σ = (1/2, 1/4), 1/4 unused: β = (1, 1/2)
        >>> selector(torch.stack([probs, 1 - probs]).log().reshape(1, 2, 1, 4)).labels
        tensor([[[  0,   0,   1, 255]]])
        >>> selector.thresholds
        tensor([0.9000, 0.3000], dtype=torch.float64)
    """

    running: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        threshold: float = 0.95,
        momentum: float = 0.999,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        super().__init__()
        _checks.check_count(num_classes, "num_classes", 2)
        _checks.check_ignore_index(ignore_index, num_classes)
        _checks.check_real(threshold, "threshold", 0.0, 1.0)
        _checks.check_real(momentum, "momentum", 0.0, 1.0)
        self.num_classes, self.threshold = num_classes, threshold
        self.momentum, self.ignore_index = momentum, ignore_index
        start = torch.zeros(num_classes + 1, dtype=torch.float64)
        start[-1] = 1.0
        self.add_state("running", start)

    def extra_repr(self) -> str:  # noqa: D102
        return (
            f"num_classes={self.num_classes}, threshold={self.threshold}, momentum={self.momentum}, "
            f"ignore_index={self.ignore_index}"
        )

    @property
    def running_shares(self) -> Tensor:
        """(C,) float64: σ."""
        return self.running[:-1]

    @property
    def thresholds(self) -> Tensor:
        """(C,) float64: each class's present threshold T."""
        # τ β / (2 - β), times the largest over itself: at least 1 / (C + 1), so nothing divides by zero.
        largest = self.running.max()
        return self.running_shares / torch.sub(largest, self.running_shares, alpha=0.5) * (0.5 * self.threshold)

    @torch.no_grad()
    def forward(self, logits: Tensor, *, valid: Tensor | None = None) -> PseudoLabels:
        """Update σ with a batch and label it.

        Args:
            logits: (B, C, H, W), any floating-point dtype and layout; detached. Computed in float32.
            valid: (B, H, W) bool; pixels where it is False are neither counted nor selected.

        Returns:
            ``PseudoLabels`` with ``labels``, ``confidence`` and ``predicted``. Pixels with a NaN logit are never
            selected and never counted.

        Raises:
            TypeError: ``logits`` is no floating-point tensor, or ``valid`` not bool.
            ValueError: ``logits`` is not (B, C, H, W), has another number of classes, or lies on another device than
                the state.
        """
        batch = observe(self, logits, valid, counts=self.training, floor=self.threshold)
        if self.training:
            sums = all_reduce_sum(batch.sums)
            ops.follow(self.running, sums[:-1], sums[-1], self.momentum)
        return label(batch, self.thresholds, self.ignore_index)
