"""Statistics of selected pixels: share, mean confidence and precision per class."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg._state import Stateful
from selftrain_seg.types import IGNORE_INDEX, PseudoLabels

__all__ = ["SelectionStatistics", "SelectionSummary"]


class SelectionSummary(NamedTuple):
    """The result of ``SelectionStatistics.compute``, each (C,) float64, NaN where a class has no pixels.

    Attributes:
        share: number of pixels labelled c / number predicted as c.
        confidence: mean confidence of the pixels labelled c.
        precision: share of the pixels labelled c whose ground truth is c, among those with ground truth.
    """

    share: Tensor
    confidence: Tensor
    precision: Tensor


class SelectionStatistics(Stateful):
    """Compute the share, mean confidence and precision of pseudo-labels per class.

    It only reads the label maps of the selector, not the logits, and the host does not wait for the device.

    Args:
        num_classes: C, at least 2.
        ignore_index: label of pixels not selected, in pseudo-labels and ground truth; outside [0, C).

    Attributes:
        counts: (4, C) int64: pixels predicted, labelled, labelled with ground truth, labelled correctly.
        confidence_sums: (C,) float64.

    State / distributed:
        Each rank holds its own sums. ``compute`` adds them over ranks, so every rank must call it.

    Raises:
        TypeError: ``num_classes`` is not an int.
        ValueError: ``num_classes`` is below 2, or ``ignore_index`` is a class.

    Example:
        >>> import torch
        >>> from selftrain_seg.selectors import select_hard
        >>> logits = torch.tensor([[3.0, 1.0], [0.0, 0.0]]).reshape(1, 2, 1, 2)
        >>> statistics = SelectionStatistics(2)
        >>> statistics.update(select_hard(logits, torch.tensor([0.9, 0.9])), target=torch.tensor([[[0, 1]]]))
        >>> summary = statistics.compute()
        >>> summary.share, summary.precision
        (tensor([0.5000,    nan], dtype=torch.float64), tensor([1., nan], dtype=torch.float64))
    """

    counts: Tensor
    confidence_sums: Tensor

    def __init__(self, num_classes: int, *, ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        _checks.check_count(num_classes, "num_classes", 2)
        _checks.check_ignore_index(ignore_index, num_classes)
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.add_state("counts", torch.zeros(4, num_classes, dtype=torch.int64), over_ranks="sum")
        self.add_state("confidence_sums", torch.zeros(num_classes, dtype=torch.float64), over_ranks="sum")

    @torch.no_grad()
    def update(self, pseudo: PseudoLabels, target: Tensor | None = None) -> None:
        """Count one batch of pseudo-labels.

        Args:
            pseudo: result of a selector, with ``predicted``.
            target: (B, H, W) integers, the ground truth for the precision.

        Raises:
            TypeError: ``target`` is not an integer tensor.
            ValueError: ``pseudo.predicted`` is None, ``target`` has a different shape or device, or the counts are on a
                different device.
        """
        if pseudo.predicted is None:
            raise ValueError("`pseudo`: expected PseudoLabels with `predicted`, got None")
        if target is not None:
            _checks.check_integer(target, "target")
            if target.shape != pseudo.labels.shape:
                raise ValueError(f"`target`: expected {tuple(pseudo.labels.shape)}, got {tuple(target.shape)}")
            _checks.check_device(target, pseudo.labels, "target")
        self.check_home(pseudo.labels, "pseudo.labels")
        table = ops.tabulate(
            pseudo.predicted, pseudo.labels, pseudo.confidence, target, self.num_classes, self.ignore_index
        )
        self.counts += table[:-1].long()
        self.confidence_sums += table[-1]

    def compute(self) -> SelectionSummary:
        """Return shares, mean confidences and precisions over all ranks.

        Returns:
            ``SelectionSummary``, with NaN where a class has no pixels.
        """
        counts, sums = self.reduced("counts", "confidence_sums")
        predicted, labelled, known, right = counts.double()
        return SelectionSummary(labelled / predicted, sums / labelled, right / known)
