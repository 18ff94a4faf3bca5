"""How far two label maps agree on each class: a class's reliability, without a target label."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg._state import Stateful

__all__ = ["ClassAgreement"]

_MEASURES = ("precision", "iou")


class ClassAgreement(Stateful):
    """Count, class by class, on how many pixels a second label map confirms the labels of a first one.

    ``precision``: ``r_c = |labels = c and other = c| / |labels = c|``, the share of the pixels labelled c that the
    other map labels c as well. ``iou``: ``|labels = c and other = c| / |labels = c or other = c|``, which also
    falls where a class shrinks. Only pixels that are of some class in both maps are counted.

    What the other map is decides what is measured:

    - the truth of labelled images (source images, better restyled to the target): precision of the class there;
    - the labels of the mirrored or rescaled image, brought back: whether the network agrees with itself;
    - the labels of the round before: whether the class is steady, as the TCR of DT-ST measures it.

    For the logits of a teacher and a student, ``teachers.AgreementStatistics`` compares confidences as well.

    Args:
        num_classes: C, at least 2.

    Attributes:
        both: (C,) int64, pixels that both maps label c.
        first: (C,) int64, pixels that the first map labels c.
        second: (C,) int64, pixels that the other map labels c.

    State / distributed:
        The counts are of this rank, saved and loaded by each; ``compute`` adds them over ranks by one all-reduce, so
        every rank must call it.

    Raises:
        TypeError: ``num_classes`` is no int.
        ValueError: ``num_classes`` is below 2.

    References:
        Zhao et al., "Towards Better Stability and Adaptability", CVPR 2023 (DT-ST), training-consistency reliability,
        there by image and here over all images.

    Example:
        >>> import torch
        >>> agreement = ClassAgreement(3)
        >>> labels, other = torch.tensor([[[0, 0, 0, 1]]]), torch.tensor([[[0, 0, 1, 255]]])
        >>> agreement.update(labels, other)
        >>> agreement.compute()  # two of three; class 1 has no pixel that is known in both
        tensor([0.6667,    nan,    nan], dtype=torch.float64)
        >>> agreement.compute(measure="iou")  # the other map has class 1 where the first has not
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

    def extra_repr(self) -> str:  # noqa: D102
        return f"num_classes={self.num_classes}"

    @torch.no_grad()
    def update(self, labels: Tensor, other: Tensor) -> None:
        """Count a batch. No host synchronisation.

        Args:
            labels: (B, H, W), integer: the labels that shall be used. Values outside [0, C), the ignore label for
                one, are not counted.
            other: (B, H, W), integer: what they are compared with. A pixel without a class here is not counted either.

        Raises:
            TypeError: one is no integer tensor.
            ValueError: one is not (B, H, W), they differ in shape or device, or the counts are on another device.
        """
        _checks.check_label_maps(labels)
        _checks.check_label_maps(other, "other")
        if other.shape != labels.shape:
            raise ValueError(f"`other`: expected {tuple(labels.shape)}, got {tuple(other.shape)}")
        _checks.check_device(other, labels, "other")
        self.check_home(labels, "labels")
        one, two = labels.long(), other.long()
        known = (one >= 0) & (one < self.num_classes) & (two >= 0) & (two < self.num_classes)
        self.both += ops.class_counts(one, known & (one == two), self.num_classes)
        self.first += ops.class_counts(one, known, self.num_classes)
        self.second += ops.class_counts(two, known, self.num_classes)

    def merge(self, other: ClassAgreement) -> None:
        """Add the counts of another one, as if its batches had been seen here.

        Args:
            other: a ``ClassAgreement`` with the same number of classes; it is not changed.

        Raises:
            TypeError: ``other`` is no ``ClassAgreement``.
            ValueError: it has another number of classes.
        """
        if not isinstance(other, ClassAgreement):
            raise TypeError(f"`other`: expected a ClassAgreement, got {type(other).__name__}")
        if other.num_classes != self.num_classes:
            raise ValueError(f"`other`: expected num_classes = {self.num_classes}, got {other.num_classes}")
        for name in ("both", "first", "second"):
            mine = getattr(self, name)
            mine += getattr(other, name).to(mine.device)

    def compute(self, *, measure: str = "precision") -> Tensor:
        """Return the reliability of each class over all batches and ranks.

        Args:
            measure: ``"precision"`` or ``"iou"``, see above.

        Returns:
            (C,) float64 in [0, 1]; NaN where there is nothing to divide by: no pixel labelled c (``"iou"``: in neither
            map) that is known in both.

        Raises:
            ValueError: ``measure`` is unknown.
        """
        _checks.check_choice(measure, "measure", _MEASURES)
        both, first, second = (part.double() for part in self.reduced("both", "first", "second"))
        return both / (first if measure == "precision" else first + second - both)
