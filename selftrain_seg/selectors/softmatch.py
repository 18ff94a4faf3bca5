"""Truncated Gaussian pixel weights (SoftMatch)."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg._state import Stateful
from selftrain_seg.distributed import all_reduce_sum
from selftrain_seg.selectors._decide import observe
from selftrain_seg.types import IGNORE_INDEX, PseudoLabels

__all__ = ["SoftMatchSelector"]


class SoftMatchSelector(Stateful):
    """Label every pixel, with a weight that falls as its confidence drops below the running mean.

    ``w = exp(-min(m - μ, 0)² n² / (2 σ²))``, which is 1 above the mean. μ and σ² are exponential averages of the mean
    and the variance of m over all pixels of the batch, ``μ ← λ μ + (1 - λ) mean(m)``, starting at 1/C and 1. With
    ``align``, m is the largest of the uniformly aligned probabilities ``p_c / (C p̃_c)``, renormalised, with p̃ the
    running mean of p; the label is still argmax p.

    Args:
        num_classes: C, at least 2.
        momentum: λ in [0, 1]. SoftMatch: 0.999.
        sigmas: n, above 0; larger values weigh low confidences less. SoftMatch: 2.
        align: whether to use uniform alignment, which needs a second pass over the logits.
        ignore_index: label of pixels that are not valid or have a NaN logit; outside [0, C).

    Attributes:
        running: (2,) float64, σ² (the population variance) and μ.
        running_probs: (C,) float64, p̃; updated only with ``align``.

    State / distributed:
        In ``eval()`` mode the state does not change. Sums are added over ranks with one all-reduce per call (two with
        ``align``), so the state equals that of one process with the joined batch.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    References:
        Chen et al., "SoftMatch: Addressing the Quantity-Quality Trade-off in Semi-supervised Learning", ICLR
        2023, Eq. 5-9.

    Example:
        >>> import torch
        >>> selector = SoftMatchSelector(2, momentum=0.0, sigmas=1.0)
        >>> probs = torch.tensor([0.9, 0.7])  # μ = 0.8, σ² = 0.01: weights 1 and exp(-1/2)
        >>> selector(torch.stack([probs, 1 - probs]).log().reshape(1, 2, 1, 2)).pixel_weight
        tensor([[[1.0000, 0.6065]]])
    """

    running: Tensor
    running_probs: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        momentum: float = 0.999,
        sigmas: float = 2.0,
        align: bool = False,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        super().__init__()
        _checks.check_count(num_classes, "num_classes", 2)
        _checks.check_ignore_index(ignore_index, num_classes)
        _checks.check_real(momentum, "momentum", 0.0, 1.0)
        _checks.check_real(sigmas, "sigmas", 0.0, float("inf"), open_low=True)
        self.num_classes, self.momentum, self.sigmas = num_classes, momentum, sigmas
        self.align, self.ignore_index = bool(align), ignore_index
        self.add_state("running", torch.tensor([1.0, 1.0 / num_classes], dtype=torch.float64))
        self.add_state("running_probs", torch.full((num_classes,), 1.0 / num_classes, dtype=torch.float64))

    @property
    def mean(self) -> Tensor:
        """() float64: μ."""
        return self.running[1]

    @property
    def variance(self) -> Tensor:
        """() float64: σ²."""
        return self.running[0]

    @torch.no_grad()
    def forward(self, logits: Tensor, *, valid: Tensor | None = None) -> PseudoLabels:
        """Update the state with a batch, label it and compute its weights.

        Args:
            logits: (B, C, H, W), any floating-point dtype and layout; detached. Computed in float32.
            valid: (B, H, W) bool; pixels where it is False are neither counted nor selected.

        Returns:
            ``PseudoLabels`` with ``labels``, ``confidence``, ``pixel_weight`` (B, H, W) float32 in [0, 1] and
            ``predicted``. Pixels with a NaN logit are ignored, have weight 0 and are never counted.

        Raises:
            TypeError: ``logits`` is not a floating-point tensor, or ``valid`` is not bool.
            ValueError: ``logits`` is not (B, C, H, W), has a different number of classes, or is on a different device
                from the state.
        """
        own = observe(self, logits, valid, probs=self.align and self.training, moments=self.training and not self.align)
        aligned = self._aligned(logits, valid, own.sums) if self.align else own
        if self.training:
            sums = all_reduce_sum(aligned.sums)
            ops.follow(self.running, sums[:2], sums[2], self.momentum, variance=True)
        labels, weight = ops.weigh(
            own.labels, own.confidence, aligned.confidence, self.running,
            sigmas=self.sigmas, ignore_index=self.ignore_index,
        )  # fmt: skip
        return PseudoLabels(labels, own.confidence, pixel_weight=weight, predicted=own.labels)

    def _aligned(self, logits: Tensor, valid: Tensor | None, sums: Tensor) -> ops.Observation:
        if self.training:
            sums = all_reduce_sum(sums)
            ops.follow(self.running_probs, sums[:-1], sums[-1], self.momentum)
        return ops.observe(logits, valid=valid, relative_to=self.running_probs, moments=self.training)
