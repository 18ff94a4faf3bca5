"""Statistics that show whether teacher and student have become one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from selftrain_seg import _checks, ops
from selftrain_seg._state import Stateful
from selftrain_seg.teachers import _weights

__all__ = ["Agreement", "AgreementStatistics", "parameter_distance"]

# Confidences are added up as whole numbers, so that ranks add up exactly and ``.half()`` changes nothing.
_UNITS = 1 << 24


def parameter_distance(teacher: nn.Module, student: nn.Module) -> Tensor:
    """Measure how far apart two networks' weights are, relative to the student's.

    ``‖θ' - θ‖₂ / ‖θ‖₂`` over all floating-point parameters. Near 0 the teacher can teach nothing that the student
    does not know; the two teachers of a ``DualTeacher`` can be compared as well.

    Args:
        teacher: a network of the student's architecture: ``MeanTeacher.model``, say.
        student: another, wrapped or not.

    Returns:
        () float64 on the student's device, without gradient; 0 if there are no parameters, NaN where a weight is.
        Of networks that FSDP2 has sharded, the whole networks' (a collective).

    Raises:
        TypeError: one is no ``torch.nn.Module``.
        ValueError: their parameters differ in names or shapes.

    References:
        Ke et al., "Dual Student", ICCV 2019, arXiv:1909.01804, on the coupling of teacher and student.

    Example:
        >>> import copy, torch
        >>> student = torch.nn.Linear(3, 4, bias=False)
        >>> teacher = copy.deepcopy(student)
        >>> with torch.no_grad():
        ...     _ = teacher.weight.mul_(1.5)
        >>> parameter_distance(teacher, student)
        tensor(0.5000, dtype=torch.float64)
    """
    _weights.check_module(teacher, "teacher")
    _weights.check_module(student, "student")
    teacher, student = _weights.unwrap(teacher), _weights.unwrap(student)
    _weights.reshard(teacher)
    _weights.reshard(student)
    own, other = _weights.by_name(teacher).parameters, _weights.by_name(student).parameters
    _weights.check_pairs("parameters", own, other)
    names = [name for name, tensor in other.items() if tensor.is_floating_point()]
    if not names:
        return torch.zeros((), dtype=torch.float64)
    distances: list[Tensor] = []
    sizes: list[Tensor] = []
    with torch.no_grad():
        for part in _weights.parts(len(names)):
            sources = [other[name].float() for name in names[part]]
            targets = [own[name].to(source) for name, source in zip(names[part], sources, strict=True)]
            distances += torch._foreach_norm(torch._foreach_sub(targets, sources))
            sizes += torch._foreach_norm(sources)
        apart, size = torch.stack(distances), torch.stack(sizes)
        apart, size = _weights.whole(apart.double().norm()), _weights.whole(size.double().norm())
    return torch.where(apart == 0, 0.0, apart / size)


class Agreement(NamedTuple):
    """How far teacher and student agree.

    Attributes:
        share: () float64, pixels with the same label among all; NaN without pixels.
        per_class: (C,) float64, pixels both label c among those either labels c; NaN where there are none.
        confidence_gap: () float64, mean of the teacher's confidence less the student's; NaN without pixels.
    """

    share: Tensor
    per_class: Tensor
    confidence_gap: Tensor


class AgreementStatistics(Stateful):
    """Count on how many pixels teacher and student say the same.

    Args:
        num_classes: C, at least 2.

    Attributes:
        both: (C,) int64, pixels that both label c.
        teacher: (C,) int64, pixels that the teacher labels c.
        student: (C,) int64, pixels that the student labels c.
        gap: () int64, sum over pixels of the teacher's confidence less the student's, in units of 2^-24.

    State / distributed:
        The counts are of this rank; ``compute`` adds them over ranks by one all-reduce.

    Raises:
        TypeError: ``num_classes`` is no int.
        ValueError: ``num_classes`` is below 1.

    Example:
        >>> import torch
        >>> statistics = AgreementStatistics(2)
        >>> one, two = torch.tensor([[3.0, 0], [3, 0], [0, 3]]), torch.tensor([[3.0, 0], [0, 3], [0, 3]])
        >>> statistics.update(one.T.reshape(1, 2, 1, 3), two.T.reshape(1, 2, 1, 3))
        >>> statistics.compute().share, statistics.compute().per_class
        (tensor(0.6667, dtype=torch.float64), tensor([0.5000, 0.5000], dtype=torch.float64))
    """

    both: Tensor
    teacher: Tensor
    student: Tensor
    gap: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        _checks.check_count(num_classes, "num_classes", 2)
        self.num_classes = num_classes
        for name in ("both", "teacher", "student"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), over_ranks="sum")
        self.add_state("gap", torch.zeros((), dtype=torch.int64), over_ranks="sum")

    @torch.no_grad()
    def update(self, teacher_logits: Tensor, student_logits: Tensor) -> None:
        """Count a batch. No host synchronisation.

        Args:
            teacher_logits: (B, C, H, W) of one network.
            student_logits: (B, C, H, W) of the other for the same images; detached. Pixels with a NaN logit in
                either are left out.

        Raises:
            TypeError: one is no floating-point tensor.
            ValueError: one is not (B, C, H, W), or they differ in shape or device, or the counts are on
                another device.
        """
        _checks.check_logits(teacher_logits, self.num_classes, "teacher_logits")
        _checks.check_logits(student_logits, self.num_classes, "student_logits")
        if student_logits.shape != teacher_logits.shape:
            raise ValueError(
                f"`student_logits`: expected {tuple(teacher_logits.shape)}, got {tuple(student_logits.shape)}"
            )
        _checks.check_device(student_logits, teacher_logits, "student_logits")
        self.check_home(teacher_logits, "teacher_logits")
        first, second = ops.read(teacher_logits), ops.read(student_logits)
        usable, agree = ops.usable(first.score) & ops.usable(second.score), first.labels == second.labels
        self.teacher += ops.class_counts(first.labels, usable, self.num_classes)
        self.student += ops.class_counts(second.labels, usable, self.num_classes)
        self.both += ops.class_counts(first.labels, usable & agree, self.num_classes)
        gap = torch.where(usable, ops.confidence_of(first.score) - ops.confidence_of(second.score), 0.0)
        self.gap += (gap.sum(dtype=torch.float64) * _UNITS).round().long()

    def compute(self) -> Agreement:
        """Return the agreement over all batches and ranks.

        Returns:
            ``Agreement(share, per_class, confidence_gap)``.
        """
        both, teacher, student, gap = (part.double() for part in self.reduced("both", "teacher", "student", "gap"))
        pixels = teacher.sum()
        return Agreement(both.sum() / pixels, both / (teacher + student - both), gap / _UNITS / pixels)
