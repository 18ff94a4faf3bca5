"""Thresholds that reach a given precision on labelled images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg._state import Stateful
from selftrain_seg.thresholds.sketch import ConfidenceSketch, total_counts

__all__ = ["PrecisionThreshold"]


class PrecisionThreshold(Stateful):
    """Find per class the lowest threshold at which labels reach a given precision on labelled images.

    ``kc_c = min {t : |predicted c, confidence ≥ t, truth c| ≥ precision · |predicted c, confidence ≥ t|}``, over the
    confidences t of pixels that are predicted as c and have a ground truth, to within a bin. A class for which no t
    exists gets 1 and is never labelled. Update it with source images restyled to the target, and pass the result to
    ``apply_floor``.

    Args:
        num_classes: C, at least 2.
        precision: share of labels that must be correct, in (0, 1].

    State / distributed:
        Each rank holds its own counts in fixed bins (``ConfidenceSketch``), so memory does not grow with the number of
        images. ``compute`` adds them over ranks, so every rank must call it.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> margins = torch.tensor([4.0, 3.0, 2.0, 1.0]).reshape(1, 1, 1, 4)
        >>> logits = torch.cat([margins, torch.zeros_like(margins)], dim=1)  # all predicted as class 0
        >>> kc = PrecisionThreshold(2, precision=0.75)
        >>> kc.update(logits, torch.tensor([[[0, 1, 0, 0]]]))  # correct: 1 of 1, 1 of 2, 2 of 3, 3 of 4
        >>> kc.compute()  # sigmoid(1); class 1 is never predicted
        tensor([0.7311, 1.0000], dtype=torch.float64)
        >>> kc.compute(precision=0.9)  # sigmoid(4)
        tensor([0.9820, 1.0000], dtype=torch.float64)
    """

    updates: Tensor

    def __init__(self, num_classes: int, precision: float = 0.9) -> None:
        super().__init__()
        _checks.check_count(num_classes, "num_classes", 2)
        _checks.check_real(precision, "precision", 0.0, 1.0, open_low=True)
        self.num_classes, self.precision = int(num_classes), float(precision)
        self.known, self.right = ConfidenceSketch(num_classes), ConfidenceSketch(num_classes)
        self.add_state("updates", torch.zeros((), dtype=torch.int64), over_ranks="sum")

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch of labelled images. No host synchronisation.

        Args:
            logits: (B, C, H, W), any floating-point dtype and layout; detached. Pixels with a NaN logit are not
                counted.
            labels: (B, H, W) integers, the ground truth. Values outside [0, C), such as the ignore label, are not
                counted.

        Raises:
            TypeError: ``logits`` is not a floating-point tensor, or ``labels`` is not an integer tensor.
            ValueError: the number of dimensions or classes is wrong, shapes do not match, or the device differs from
                that of the counts.
        """
        _checks.check_logits(logits, self.num_classes)
        _checks.check_integer(labels, "labels")
        _checks.check_map(labels, logits, "labels")
        self.check_home(logits, "logits")
        found, truth = ops.read(logits.detach()), labels.long()
        known = (truth >= 0) & (truth < self.num_classes)
        self.known.update(found.score, torch.where(known, found.labels, -1))
        self.right.update(found.score, torch.where(known & (found.labels == truth), truth, -1))
        self.updates += 1

    def merge(self, other: PrecisionThreshold) -> None:
        """Add the counts of another ``PrecisionThreshold``, as if its batches had been counted here.

        Args:
            other: a ``PrecisionThreshold`` with the same number of classes; it is not changed.

        Raises:
            TypeError: ``other`` is not a ``PrecisionThreshold``.
            ValueError: the numbers of classes differ.
        """
        self.add_sums(other, PrecisionThreshold, "num_classes")
        self.known.merge(other.known)
        self.right.merge(other.right)

    @torch.no_grad()
    def compute(self, precision: float | None = None) -> Tensor:
        """Return the thresholds for a precision. It may be called for several precisions after one pass.

        The host waits for the device, so call it between two passes over the data.

        Args:
            precision: a number in (0, 1]; by default the one given at construction.

        Returns:
            (C,) float64 probabilities on the device of the counts; 1 for classes that were not predicted or for which
            no threshold reaches the precision.

        Raises:
            TypeError: ``precision`` is not a number.
            ValueError: ``precision`` is outside (0, 1], or nothing was counted yet.
        """
        wanted: Any = self.precision if precision is None else precision
        _checks.check_real(wanted, "precision", 0.0, 1.0, open_low=True)
        counted = total_counts(self.updates, self.known, self.right).flip(2)
        known, right = counted.cumsum(2).double()  # pixels in each bin and above it
        reached = (counted[0] > 0) & (right >= known * wanted * (1.0 - 2.0**-50))
        place = torch.arange(1, known.shape[1] + 1, device=known.device) * reached
        edge = self.known.high - place.amax(1).double() * self.known.bin_width
        probability = torch.sigmoid(edge)
        below = torch.nextafter(probability, torch.zeros_like(probability))
        return torch.where(reached.any(1), below, 1.0)
