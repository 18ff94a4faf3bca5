"""Confusion matrix of a network over a set of images, with IoU, precision and recall."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg._state import Stateful
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["ConfusionMatrix", "ConfusionSummary"]


class ConfusionSummary(NamedTuple):
    """The result of ``ConfusionMatrix.compute``. Scores are in [0, 1], not in percent.

    Attributes:
        counts: (C, C + 1) int64, pixels of true class i predicted as class j; the last column counts pixels with a NaN
            logit.
        iou: (C,) float64, correct / (true + predicted - correct); NaN for a class that is neither true nor predicted.
        precision: (C,) float64, correct / predicted; NaN for a class that is never predicted.
        recall: (C,) float64, correct / true; NaN for a class that is not in the ground truth.
        miou: () float64, mean of ``iou`` over the classes where it is not NaN; NaN without pixels.
    """

    counts: Tensor
    iou: Tensor
    precision: Tensor
    recall: Tensor
    miou: Tensor


class ConfusionMatrix(Stateful):
    """Accumulate a confusion matrix over a set of images, for mIoU, precision and recall.

    The mIoU is computed from one matrix over all images, as usual in semantic segmentation, not averaged over images.
    The host does not wait for the device.

    Args:
        num_classes: C, at least 2.
        ignore_index: label of pixels without ground truth; outside [0, C).

    Attributes:
        counts: (C, C + 1) int64; rows are true classes, columns are predicted ones, the last for pixels without a
            prediction.

    State / distributed:
        Each rank holds its own counts; ``compute`` adds them over ranks, so every rank must call it.

    Raises:
        TypeError: an argument is not an int.
        ValueError: ``num_classes`` is below 2, or ``ignore_index`` is a class.

    Example:
        >>> import torch
        >>> matrix = ConfusionMatrix(2)
        >>> logits = torch.tensor([[2.0, 2.0, 0.0], [0.0, 0.0, 2.0]]).reshape(1, 2, 1, 3)  # labels 0, 0, 1
        >>> matrix.update(logits, torch.tensor([[[0, 1, 1]]]))
        >>> summary = matrix.compute()
        >>> summary.iou.tolist(), summary.precision.tolist(), summary.recall.tolist()
        ([0.5, 0.5], [0.5, 1.0], [1.0, 0.5])
    """

    counts: Tensor

    def __init__(self, num_classes: int, *, ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        _checks.check_count(num_classes, "num_classes", 2)
        _checks.check_ignore_index(ignore_index, num_classes)
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.add_state("counts", torch.zeros(num_classes, num_classes + 1, dtype=torch.int64), over_ranks="sum")

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count one batch.

        Args:
            logits: (B, C, H, W), any floating-point dtype. A pixel with a NaN logit has no predicted class.
            labels: (B, H, W) integers. Those outside [0, C) are not counted.

        Raises:
            TypeError: ``logits`` is not a floating-point tensor, or ``labels`` is not an integer tensor.
            ValueError: shapes or devices differ, or the counts are on a different device. Inside ``value_checks()``: a
                label is neither a class nor ``ignore_index``.
        """
        _checks.check_logits(logits, self.num_classes)
        _checks.check_labels(labels, logits, self.ignore_index)
        self.check_home(logits, "logits")
        found, size = ops.read(logits), self.num_classes
        predicted = torch.where(found.score.isnan(), size, found.labels)
        truth = labels.long()  # as uint8, a product would overflow
        known = (truth >= 0) & (truth < size)
        self.counts += ops.class_counts(truth * (size + 1) + predicted, known, size * (size + 1)).view(size, size + 1)

    def compute(self) -> ConfusionSummary:
        """Return the counts over all ranks, with IoU, precision and recall.

        Returns:
            ``ConfusionSummary``, on the device of the counts.
        """
        (counts,) = self.reduced("counts")
        right, true, labelled = counts.diagonal().double(), counts.sum(1).double(), counts[:, :-1].sum(0).double()
        iou = right / (true + labelled - right)
        return ConfusionSummary(counts.clone(), iou, right / labelled, right / true, iou.nanmean())
