"""Truncated Gaussian pixel weights (SoftMatch)."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg._state import Stateful
from selftrain_seg.distributed import all_reduce_sum
from selftrain_seg.selectors._decide import decide, moving_average, read
from selftrain_seg.types import IGNORE_INDEX, PseudoLabels

__all__ = ["SoftMatchSelector"]


class SoftMatchSelector(Stateful):
    """Keep every pixel's label and weigh it by how far its confidence lies below the running mean.

    ``w = exp(-min(m - μ, 0)² n² / (2 σ²))``, so 1 from the mean on. μ and σ² are exponential averages of the mean
    and the variance of m over all pixels of the batch, ``μ ← λ μ + (1 - λ) mean(m)``, from 1/C and 1. With
    ``align``, m is that of the uniformly aligned ``p_c / (C p̃_c)``, renormalised, with p̃ the running mean of p;
    the label is still argmax p.

    Args:
        num_classes: C, at least 2.
        momentum: λ in [0, 1]. SoftMatch: 0.999.
        sigmas: n, above 0, the truncation. SoftMatch: 2.
        align: whether confidences are uniformly aligned. It takes a second pass over the logits.
        ignore_index: label of the unusable pixels; outside [0, C).

    Attributes:
        mean: () float64, μ.
        variance: () float64, σ², of the population.
        running_probs: (C,) float64, p̃; moves only with ``align``.

    State / distributed:
        In ``eval()`` mode all stay as they are. Sums are added over ranks, one all-reduce a
        call (two with ``align``), so the state is that of one process with the joined batch.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range.

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

    mean: Tensor
    variance: Tensor
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
        self.add_state("mean", torch.tensor(1.0 / num_classes, dtype=torch.float64))
        self.add_state("variance", torch.tensor(1.0, dtype=torch.float64))
        self.add_state("running_probs", torch.full((num_classes,), 1.0 / num_classes, dtype=torch.float64))

    def extra_repr(self) -> str:  # noqa: D102
        return (
            f"num_classes={self.num_classes}, momentum={self.momentum}, sigmas={self.sigmas}, align={self.align}, "
            f"ignore_index={self.ignore_index}"
        )

    @torch.no_grad()
    def forward(self, logits: Tensor, *, valid: Tensor | None = None) -> PseudoLabels:
        """Update the state with a batch, label and weigh it.

        Args:
            logits: (B, C, H, W), any floating-point dtype and layout; detached. Computed in float32.
            valid: (B, H, W) bool; pixels where it is False are neither counted nor selected.

        Returns:
            ``PseudoLabels`` with ``labels`` (every usable pixel's), ``confidence``, ``pixel_weight`` (B, H, W) float32
            in [0, 1] and ``predicted``. Pixels with a NaN logit are ignored, weigh 0 and are never counted.

        Raises:
            TypeError: ``logits`` is no floating-point tensor, or ``valid`` not bool.
            ValueError: ``logits`` is not (B, C, H, W), has another number of classes, or lies on another device than
                the state.
        """
        batch = read(self, logits, valid, class_sums=self.align and self.training)
        own, usable = ops.confidence_of(batch.score), ops.usable(batch.score)
        aligned = self._aligned(logits, batch) if self.align else own
        if self.training:
            self._update(aligned, usable)
        below = (aligned - self.mean.float()).clamp(max=0.0)
        # A variance of exactly 0 (all pixels alike) leaves weight 1 at the mean and 0 below it.
        spread = (2.0 * self.variance).clamp(min=1e-30).float()
        weight = torch.exp(-((below * self.sigmas) ** 2) / spread) * usable
        return decide(batch, usable, self.ignore_index, confidence=own, pixel_weight=weight)

    def _aligned(self, logits: Tensor, batch: ops.Reading) -> Tensor:
        if self.training:
            count = ops.usable(batch.score).sum(dtype=torch.float64).view(1)
            sums = all_reduce_sum(torch.cat([batch.class_sums, count]))
            mean = sums[:-1] / sums[-1].clamp(min=1)
            self.running_probs.copy_(moving_average(self.running_probs, mean, self.momentum, sums[-1]))
        # p_c / p̃_c, renormalised, is the softmax of the logits less log p̃.
        offset = -self.running_probs.clamp(min=1e-30).log().float()
        return ops.confidence_of(ops.read(logits, offset=offset).score)

    def _update(self, confidence: Tensor, usable: Tensor) -> None:
        m = torch.where(usable, confidence, 0.0).double()
        sums = torch.stack([usable.sum(dtype=torch.float64), m.sum(), (m * m).sum()])
        count, total, squares = all_reduce_sum(sums)
        mean = total / count.clamp(min=1)
        variance = (squares / count.clamp(min=1) - mean * mean).clamp(min=0.0)
        self.mean.copy_(moving_average(self.mean, mean, self.momentum, count))
        self.variance.copy_(moving_average(self.variance, variance, self.momentum, count))
