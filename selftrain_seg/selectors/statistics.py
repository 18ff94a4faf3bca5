"""What was selected: shares, mean confidence and precision per class."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg._state import Stateful
from selftrain_seg.types import IGNORE_INDEX, PseudoLabels

__all__ = ["SelectionStatistics", "SelectionSummary"]


class SelectionSummary(NamedTuple):
    """What ``SelectionStatistics.compute`` returns, each (C,) float64, NaN where a class has no pixels.

    Attributes:
        share: pixels labelled c / pixels predicted as c.
        confidence: mean confidence of the pixels labelled c.
        precision: pixels labelled c that are c / pixels labelled c, both among those with ground truth.
    """

    share: Tensor
    confidence: Tensor
    precision: Tensor


class SelectionStatistics(Stateful):
    """Count what selectors select, class by class: the figures the papers plot over rounds.

    One histogram a batch over the label maps the selector made anyway; the logits are not read again and the
    host does not wait for the device.

    Args:
        num_classes: C, at least 2.
        ignore_index: label of pixels not selected, in pseudo-labels and ground truth; outside [0, C).

    Attributes:
        counts: (4, C) int64: pixels predicted, labelled, labelled with known truth, labelled right.
        confidence_sums: (C,) float64.

    State / distributed:
        Both are sums, each rank's own. ``compute`` adds them over ranks, so every rank must call it.

    Raises:
        TypeError: ``num_classes`` is not an int.
        ValueError: ``num_classes`` is below 1.

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
            pseudo: what a selector returned; ``predicted`` must be there.
            target: (B, H, W) ground truth, integers, to measure precision with.

        Raises:
            TypeError: ``target`` is not an integer tensor.
            ValueError: ``pseudo.predicted`` is None, ``target`` has another shape or device, or the counts are on
                another device.
        """
        if pseudo.predicted is None:
            raise ValueError("`pseudo`: expected PseudoLabels with `predicted`, got None there")
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
            ``SelectionSummary``; a class that was not predicted, labelled or known has NaN there.
        """
        counts, sums = self.reduced("counts", "confidence_sums")
        predicted, labelled, known, right = counts.double()
        return SelectionSummary(labelled / predicted, sums / labelled, right / known)
