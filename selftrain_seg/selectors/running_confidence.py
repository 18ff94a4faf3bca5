"""Thresholds from a running class confidence (SAC, DT-ST)."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg._state import Stateful
from selftrain_seg.distributed import all_reduce_sum
from selftrain_seg.selectors._decide import label, observe
from selftrain_seg.types import IGNORE_INDEX, PseudoLabels

__all__ = ["RunningConfidenceSelector"]


class RunningConfidenceSelector(Stateful):
    """Select pixels relative to the peak confidence of their class in the image, less strictly for rare classes.

    ``r_c ← momentum · r_c + (1 - momentum) · p̄_c``, with ``p̄_c`` the mean of p_c over all pixels of the batch. A
    class that is seen for the first time (``p̄_c > 1e-8``) starts at ``r_c = p̄_c``. In each image, ``t_c = max(lower,
    upper · peak_c · (1 - exp(-r_c / beta)))``, with peak_c the largest confidence of the pixels predicted as c;
    ``y = ŷ`` where ``m > t_ŷ``, else ``ignore_index``.

    Args:
        num_classes: C, at least 2.
        upper: share of the peak that a frequent class must reach, in [0, 1]. DT-ST: 0.8; SAC: 0.75.
        lower: smallest threshold, in [0, 1]. Both: 0.2.
        beta: mean probability below which the threshold is lowered, and initial r; above 0. Both: 1e-3.
        momentum: weight of the old r, in [0, 1]. DT-ST: 0.9; SAC: 0.99.
        ignore_index: label of the pixels that are not selected; outside [0, C).

    Attributes:
        running_confidence: (C,) float64, r.
        seen: (C,) bool, whether a class has been seen.

    State / distributed:
        In ``eval()`` mode the state does not change. The sums of p_c and the pixel count are added over ranks with one
        all-reduce per call, so r equals that of one process with the joined batch.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    References:
        SAC: Araslanov and Roth, "Self-supervised Augmentation Consistency for Adapting Semantic Segmentation",
        CVPR 2021. DT-ST: Zhao et al., "Towards Better Stability and Adaptability: Improve Online Self-Training for
        Model Adaptation in Semantic Segmentation", CVPR 2023.

    Example:
        >>> import torch
        >>> selector = RunningConfidenceSelector(2)
        >>> probs = torch.tensor([0.9, 0.6])  # peak 0.9, and r = 0.75 is far above beta: threshold 0.72
        >>> selector(torch.stack([probs, 1 - probs]).log().reshape(1, 2, 1, 2)).labels
        tensor([[[  0, 255]]])
        >>> selector.running_confidence
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """

    running_confidence: Tensor
    seen: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        upper: float = 0.8,
        lower: float = 0.2,
        beta: float = 1e-3,
        momentum: float = 0.9,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        super().__init__()
        _checks.check_count(num_classes, "num_classes", 2)
        _checks.check_ignore_index(ignore_index, num_classes)
        _checks.check_real(upper, "upper", 0.0, 1.0)
        _checks.check_real(lower, "lower", 0.0, 1.0)
        _checks.check_real(beta, "beta", 0.0, float("inf"), open_low=True)
        _checks.check_real(momentum, "momentum", 0.0, 1.0)
        self.num_classes, self.upper, self.lower = num_classes, upper, lower
        self.beta, self.momentum, self.ignore_index = beta, momentum, ignore_index
        self.add_state("running_confidence", torch.full((num_classes,), float(beta), dtype=torch.float64))
        self.add_state("seen", torch.zeros(num_classes, dtype=torch.bool))

    @torch.no_grad()
    def forward(self, logits: Tensor, *, valid: Tensor | None = None) -> PseudoLabels:
        """Update r with a batch and label it.

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
        batch = observe(self, logits, valid, probs=self.training, peaks=True)
        sums = all_reduce_sum(batch.sums) if self.training else None
        bars = ops.discount(
            batch.peaks, self.running_confidence, self.seen, sums,
            upper=self.upper, lower=self.lower, beta=self.beta, momentum=self.momentum,
        )  # fmt: skip
        return label(batch, bars, self.ignore_index, strict=True)
