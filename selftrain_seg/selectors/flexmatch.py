"""Curriculum thresholds per class (FlexMatch)."""

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
    """Select by class thresholds that are lower for classes with few confident pixels.

    ``y = ŷ`` where ``m ≥ T_ŷ``, else ``ignore_index``. ``T_c = τ β_c / (2 - β_c)`` with
    ``β_c = σ_c / max(max_c σ_c, 1 - Σ_c σ_c)``, where σ_c is the share of pixels that are predicted as c with
    ``m ≥ τ``. The share of pixels below τ, ``1 - Σ σ``, keeps all thresholds low at first. Differs from the paper: σ is
    an exponential average over batches, ``σ ← λ σ + (1 - λ) σ_batch``, starting at 0. The paper stores the last label
    of every sample, which does not scale to pixels.

    Args:
        num_classes: C, at least 2.
        threshold: τ in [0, 1]. FlexMatch: 0.95.
        momentum: λ in [0, 1].
        ignore_index: label of the pixels that are not selected; outside [0, C).

    Attributes:
        running: (C + 1,) float64, the whole state: σ, and the share of pixels below τ.

    State / distributed:
        In ``eval()`` mode the state does not change. Counts are added over ranks with one all-reduce per call, so σ
        equals that of one process with the joined batch.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

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

    @property
    def running_shares(self) -> Tensor:
        """(C,) float64: σ."""
        return self.running[:-1]

    @property
    def thresholds(self) -> Tensor:
        """(C,) float64: the current threshold T of each class."""
        # τ β / (2 - β), expanded by the largest share, which is at least 1 / (C + 1): no division by zero.
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
            TypeError: ``logits`` is not a floating-point tensor, or ``valid`` is not bool.
            ValueError: ``logits`` is not (B, C, H, W), has a different number of classes, or is on a different device
                from the state.
        """
        batch = observe(self, logits, valid, counts=self.training, floor=self.threshold)
        if self.training:
            sums = all_reduce_sum(batch.sums)
            ops.follow(self.running, sums[:-1], sums[-1], self.momentum)
        return label(batch, self.thresholds, self.ignore_index)
