"""Count the selected pixels of each class from the maps of a selector."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg.ops._library import operator
from selftrain_seg.ops.counts import tally


def tabulate(
    predicted: Tensor, labels: Tensor, confidence: Tensor, target: Tensor | None, num_classes: int, ignore_index: int
) -> Tensor:
    """(5, C) float64: pixels predicted c, labelled c, labelled c with known truth, correctly labelled c, Σ confidence.

    The maps are (B, H, W). A confidence of 0 marks a pixel without a prediction; the sum is over the pixels labelled c.
    """
    # As uint8, -1 would be a class.
    table: Tensor = _tabulate(predicted.long(), labels.long(), confidence, target, num_classes, ignore_index)
    return table


def _plain(
    predicted: Tensor, labels: Tensor, confidence: Tensor, target: Tensor | None, none: int, ignore_index: int
) -> Tensor:
    def inside(label: Tensor) -> Tensor:
        return (label >= 0) & (label < none) & (label != ignore_index)

    predicted = torch.where((confidence > 0) & (predicted >= 0) & (predicted < none), predicted, none)
    selected = inside(labels)
    labels = torch.where(selected, labels, none)
    truth = torch.zeros_like(labels)  # 0: unknown, 1: another class, 2: the label is correct
    if target is not None:
        target = target.long()
        truth = torch.where(selected & inside(target), 1 + (target == labels).long(), 0)
    size = none + 1  # one more for pixels that are not counted
    counts = tally((predicted * size + labels) * 3 + truth, size * size * 3).view(size, size, 3)
    by_label = counts.sum(0)[:-1]
    sums = torch.zeros(size, dtype=torch.float64, device=labels.device)
    sums.index_add_(0, labels.flatten(), confidence.flatten().double())
    rows = [counts.sum((1, 2))[:-1], by_label.sum(1), by_label[:, 1:].sum(1), by_label[:, 2]]
    return torch.stack([*(row.double() for row in rows), sums[:-1]])


_tabulate = operator(
    "tabulate(Tensor predicted, Tensor labels, Tensor confidence, Tensor? target, int num_classes, int ignore_index)"
    " -> Tensor",
    _plain,
    lambda predicted, labels, confidence, target, none, _: confidence.new_empty((5, none), dtype=torch.float64),
    kernel="launch_state",
)
