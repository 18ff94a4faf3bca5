"""Instance-adaptive thresholds (IAST)."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg._state import Stateful
from selftrain_seg.distributed import all_reduce_sum
from selftrain_seg.distributed.reduce import rank_and_ranks
from selftrain_seg.selectors._decide import label, observe
from selftrain_seg.types import IGNORE_INDEX, PseudoLabels

__all__ = ["InstanceAdaptiveSelector"]


class InstanceAdaptiveSelector(Stateful):
    """Select pixels by class thresholds that adapt to the confidences in each image.

    Images are processed in order. For each class c in an image, ``θ_c ← β θ_c + (1 - β) ψ_c``, where a result of 1
    becomes 0.999. ``ψ_c`` is the ``1 - α θ_c^γ`` quantile, linearly interpolated, of θ_c and the confidences of the
    pixels predicted as c. Then ``y = ŷ`` if ``m ≥ θ_ŷ`` with the updated θ, else ``ignore_index``. The higher the
    threshold of a class, the larger the share of its pixels that is kept. The θ of a class that is absent does not
    change.

    Args:
        num_classes: C, at least 2.
        portion: α, in [0, 1]; the share kept at θ = 1. IAST: 0.2, then 0.25 and 0.3 in later rounds. It may be changed
            between calls.
        momentum: β, in [0, 1]; the weight of the old θ. IAST: 0.9.
        gamma: γ, at least 0. IAST: 8.
        initial: θ before the first image, in [0, 1]. IAST: 0.9.
        per: ``"image"`` updates once per image, as in the paper; ``"batch"`` once per batch, as in the published code
            (batches of 2).
        ignore_index: label of the pixels that are not selected; outside [0, C).

    Attributes:
        thresholds: (C,) float64, θ.

    State / distributed:
        In ``eval()`` mode the state does not change. On several ranks, each processes its own images; then θ is
        averaged over ranks, weighted by their numbers of images, with one all-reduce per call. Every rank must call it
        equally often; a batch may be empty.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range or not among its choices.

    References:
        Mei et al., "Instance Adaptive Self-Training for Unsupervised Domain Adaptation", ECCV 2020, Eq. 4-6.

    Example:
        >>> import torch
        >>> selector = InstanceAdaptiveSelector(2, portion=0.5, momentum=0.0, gamma=0.0, initial=0.6)
        >>> probs = torch.tensor([0.9, 0.8, 0.7, 0.55])  # all predicted as class 0
        >>> selector(torch.stack([probs, 1 - probs]).log().reshape(1, 2, 1, 4)).labels
        tensor([[[  0,   0,   0, 255]]])
        >>> selector.thresholds  # the median of these four and 0.6; class 1 is absent
        tensor([0.7000, 0.6000], dtype=torch.float64)
    """

    thresholds: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        portion: float = 0.2,
        momentum: float = 0.9,
        gamma: float = 8.0,
        initial: float = 0.9,
        per: str = "image",
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        super().__init__()
        _checks.check_count(num_classes, "num_classes", 2)
        _checks.check_ignore_index(ignore_index, num_classes)
        _checks.check_real(portion, "portion", 0.0, 1.0)
        _checks.check_real(momentum, "momentum", 0.0, 1.0)
        _checks.check_real(gamma, "gamma", 0.0, float("inf"))
        _checks.check_real(initial, "initial", 0.0, 1.0)
        _checks.check_choice(per, "per", ("image", "batch"))
        self.num_classes, self.portion, self.momentum, self.gamma = num_classes, portion, momentum, gamma
        self.initial, self.per, self.ignore_index = initial, per, ignore_index
        self.add_state("thresholds", torch.full((num_classes,), float(initial), dtype=torch.float64))

    @torch.no_grad()
    def forward(self, logits: Tensor, *, valid: Tensor | None = None) -> PseudoLabels:
        """Update θ with a batch and label it.

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
        batch = observe(self, logits, valid)
        bars = self.thresholds
        if self.training:
            moved = ops.adapt(
                batch.labels, batch.confidence, bars,
                portion=self.portion, momentum=self.momentum, gamma=self.gamma, by_image=self.per == "image",
            )  # fmt: skip
            bars = moved[1:]
            self._keep_in_step(moved[-1], logits.shape[0])
        return label(batch, bars, self.ignore_index)

    def _keep_in_step(self, theta: Tensor, images: int) -> None:
        if rank_and_ranks()[1] > 1:
            total = all_reduce_sum(torch.cat([theta * images, theta.new_full((1,), images)]))
            theta = torch.where(total[-1] > 0, total[:-1] / total[-1].clamp(min=1), self.thresholds)
        self.thresholds.copy_(theta)
