"""Statistics of how much teacher and student differ."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from selftrain_seg import _checks, ops
from selftrain_seg._state import Stateful
from selftrain_seg.teachers import _weights

__all__ = ["Agreement", "AgreementStatistics", "parameter_distance"]

# Confidences are summed as integers, so that sums over ranks are exact and ``.half()`` does not change them.
_UNITS = 1 << 24


def parameter_distance(teacher: nn.Module, student: nn.Module) -> Tensor:
    """Measure the distance between the weights of two networks, relative to those of the student.

    ``‖θ' - θ‖₂ / ‖θ‖₂`` over all floating-point parameters. Near 0, the teacher's labels are almost those of the
    student. It can also compare the two teachers of a ``DualTeacher``.

    Args:
        teacher: a network with the student's architecture, such as ``MeanTeacher.model``.
        student: the other network, wrapped or not.

    Returns:
        () float64 on the student's device, without gradient; 0 if there are no parameters, NaN if a weight is NaN.
        For networks sharded by FSDP2 it is that of the whole networks, and the call is a collective.

    Raises:
        TypeError: one of them is not a ``torch.nn.Module``.
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
    """Agreement of teacher and student.

    Attributes:
        share: () float64, share of pixels with the same label; NaN without pixels.
        per_class: (C,) float64, number of pixels that both label c divided by those that either labels c; NaN if there
            are none.
        confidence_gap: () float64, mean of the teacher's confidence minus the student's; NaN without pixels.
    """

    share: Tensor
    per_class: Tensor
    confidence_gap: Tensor


class AgreementStatistics(Stateful):
    """Count the pixels on which teacher and student agree.

    Args:
        num_classes: C, at least 2.

    Attributes:
        both: (C,) int64, pixels that both label c.
        teacher: (C,) int64, pixels that the teacher labels c.
        student: (C,) int64, pixels that the student labels c.
        gap: () int64, sum over pixels of the teacher's confidence minus the student's, in units of 2^-24.

    State / distributed:
        Each rank keeps its own counts; ``compute`` sums them over ranks by one all-reduce.

    Raises:
        TypeError: ``num_classes`` is not an int.
        ValueError: ``num_classes`` is below 2.

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
            teacher_logits: (B, C, H, W), detached.
            student_logits: (B, C, H, W) for the same images, detached. Pixels with a NaN logit in either are left out.

        Raises:
            TypeError: one of them is not a floating-point tensor.
            ValueError: one of them is not (B, C, H, W), or they differ in shape or device, or the counts are on
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
