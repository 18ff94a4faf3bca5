"""Self-adaptive thresholds (FreeMatch)."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg._state import Stateful
from selftrain_seg.distributed import all_reduce_sum
from selftrain_seg.selectors._decide import label, observe
from selftrain_seg.types import IGNORE_INDEX, PseudoLabels

__all__ = ["FreeMatchSelector"]


class FreeMatchSelector(Stateful):
    """Select by a running mean of the confidence, scaled per class by its running mean probability.

    ``τ ← λ τ + (1 - λ) mean(m)`` and ``p̃ ← λ p̃ + (1 - λ) mean(p)`` over all pixels of the batch, then ``y = ŷ`` where
    ``m ≥ τ · p̃_ŷ / max_c p̃_c``, else ``ignore_index``. Both start at 1/C.

    Args:
        num_classes: C, at least 2.
        momentum: λ in [0, 1]. FreeMatch: 0.999.
        ignore_index: label of the pixels that are not selected; outside [0, C).

    Attributes:
        running: (2 C + 1,) float64, the whole state: τ, p̃ and the histogram h of predictions.

    State / distributed:
        In ``eval()`` mode the state does not change. Sums over the batch are added over ranks with one all-reduce per
        call, so the state equals that of one process with the joined batch.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    References:
        Wang et al., "FreeMatch: Self-adaptive Thresholding for Semi-supervised Learning", ICLR 2023, Eq. 5-8.

    Example:
        >>> import torch
        >>> selector = FreeMatchSelector(2, momentum=0.0)
        >>> probs = torch.tensor([0.9, 0.8, 0.4])  # τ = (0.9 + 0.8 + 0.6) / 3 = 0.77, p̃ = (0.7, 0.3)
        >>> selector(torch.stack([probs, 1 - probs]).log().reshape(1, 2, 1, 3)).labels  # 0.6 ≥ 0.77 · 3/7
        tensor([[[0, 0, 1]]])
        >>> selector.thresholds
        tensor([0.7667, 0.3286], dtype=torch.float64)
    """

    running: Tensor

    def __init__(self, num_classes: int, *, momentum: float = 0.999, ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        _checks.check_count(num_classes, "num_classes", 2)
        _checks.check_ignore_index(ignore_index, num_classes)
        _checks.check_real(momentum, "momentum", 0.0, 1.0)
        self.num_classes, self.momentum, self.ignore_index = num_classes, momentum, ignore_index
        self.add_state("running", torch.full((2 * num_classes + 1,), 1.0 / num_classes, dtype=torch.float64))

    @property
    def global_threshold(self) -> Tensor:
        """() float64: τ."""
        return self.running[0]

    @property
    def running_probs(self) -> Tensor:
        """(C,) float64: p̃."""
        return self.running[1 : self.num_classes + 1]

    @property
    def running_histogram(self) -> Tensor:
        """(C,) float64: running share of pixels predicted as each class, h of ``losses.fairness_loss``."""
        return self.running[self.num_classes + 1 :]

    @property
    def thresholds(self) -> Tensor:
        """(C,) float64: the current threshold of each class."""
        return self.global_threshold * self.running_probs / self.running_probs.max()

    @torch.no_grad()
    def forward(self, logits: Tensor, *, valid: Tensor | None = None) -> PseudoLabels:
        """Update the state with a batch and label it.

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
        wanted = dict.fromkeys(("moments", "probs", "counts"), self.training)
        batch = observe(self, logits, valid, **wanted)
        if self.training:
            sums = all_reduce_sum(batch.sums)  # Σ m², the sums for τ, p̃ and h, and two pixel counts
            ops.follow(self.running, sums[1:-2], sums[-1], self.momentum)
        return label(batch, self.thresholds, self.ignore_index)
