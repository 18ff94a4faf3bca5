"""Per-class agreement of two label maps, a measure of reliability."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg._state import Stateful

__all__ = ["ClassAgreement"]

_MEASURES = ("precision", "iou")


class ClassAgreement(Stateful):
    """Measure per class how often a second label map agrees with the labels of a first one.

    ``precision``: ``r_c = |labels = c and other = c| / |labels = c|``, the share of the pixels labelled c that the
    other map also labels c. ``iou``: ``|labels = c and other = c| / |labels = c or other = c|``, which also falls when
    a class shrinks. Only pixels with a class in both maps are counted.

    The other map determines what is measured:

    - the ground truth of labelled images (source images, ideally restyled to the target): the precision of the class;
    - the labels of the mirrored or rescaled image, mapped back: whether the network agrees with itself;
    - the labels of the previous round: whether the class is stable, as measured by the TCR of DT-ST.

    ``restyle.ConfusionMatrix`` keeps the counts of all pairs of classes. Use it to score a network on labelled images
    by mIoU or recall. ``teachers.AgreementStatistics`` compares the logits of a teacher and a student, including their
    confidences.

    Args:
        num_classes: C, at least 2.

    Attributes:
        both: (C,) int64, pixels that both maps label c.
        first: (C,) int64, pixels that the first map labels c.
        second: (C,) int64, pixels that the other map labels c.

    State / distributed:
        Each rank holds, saves and loads its own counts; ``compute`` adds them over ranks with one all-reduce, so every
        rank must call it.

    Raises:
        TypeError: ``num_classes`` is not an int.
        ValueError: ``num_classes`` is below 2.

    References:
        Zhao et al., "Towards Better Stability and Adaptability", CVPR 2023 (DT-ST), training-consistency reliability,
        computed per image there and over all images here.

    Example:
        >>> import torch
        >>> agreement = ClassAgreement(3)
        >>> labels, other = torch.tensor([[[0, 0, 0, 1]]]), torch.tensor([[[0, 0, 1, 255]]])
        >>> agreement.update(labels, other)
        >>> agreement.compute()  # two of three; no pixel of class 1 has a class in both maps
        tensor([0.6667,    nan,    nan], dtype=torch.float64)
        >>> agreement.compute(measure="iou")  # only the other map has class 1
        tensor([0.6667, 0.0000,    nan], dtype=torch.float64)
    """

    both: Tensor
    first: Tensor
    second: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        _checks.check_count(num_classes, "num_classes", 2)
        self.num_classes = int(num_classes)
        for name in ("both", "first", "second"):
            self.add_state(name, torch.zeros(self.num_classes, dtype=torch.int64), over_ranks="sum")

    @torch.no_grad()
    def update(self, labels: Tensor, other: Tensor) -> None:
        """Count a batch. No host synchronisation.

        Args:
            labels: (B, H, W) integers, the labels to judge. Values outside [0, C), such as the ignore label, are not
                counted.
            other: (B, H, W) integers, the labels to compare with. Pixels outside [0, C) are not counted either.

        Raises:
            TypeError: an argument is not an integer tensor.
            ValueError: an argument is not (B, H, W), the two differ in shape or device, or the counts are on a
                different device.
        """
        _checks.check_label_maps(labels)
        _checks.check_label_maps(other, "other")
        if other.shape != labels.shape:
            raise ValueError(f"`other`: expected {tuple(labels.shape)}, got {tuple(other.shape)}")
        _checks.check_device(other, labels, "other")
        self.check_home(labels, "labels")
        pairs = ops.pair_counts(labels, other, self.num_classes)[:, :-1]  # of pixels with a class in both
        self.both += pairs.diagonal()
        self.first += pairs.sum(1)
        self.second += pairs.sum(0)

    def merge(self, other: ClassAgreement) -> None:
        """Add the counts of another ``ClassAgreement``, as if its batches had been counted here.

        Args:
            other: a ``ClassAgreement`` with the same number of classes; it is not changed.

        Raises:
            TypeError: ``other`` is not a ``ClassAgreement``.
            ValueError: the numbers of classes differ.
        """
        self.add_sums(other, ClassAgreement, "num_classes")

    def compute(self, *, measure: str = "precision") -> Tensor:
        """Return the reliability of each class over all batches and ranks.

        Args:
            measure: ``"precision"`` or ``"iou"``.

        Returns:
            (C,) float64 in [0, 1]; NaN if no counted pixel is labelled c (for ``"iou"``, in neither map).

        Raises:
            ValueError: ``measure`` is unknown.
        """
        _checks.check_choice(measure, "measure", _MEASURES)
        both, first, second = (part.double() for part in self.reduced("both", "first", "second"))
        return both / (first if measure == "precision" else first + second - both)
