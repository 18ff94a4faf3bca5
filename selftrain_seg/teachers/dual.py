"""Two temporary teachers that take turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from selftrain_seg.mining import class_mix, cut_mix
from selftrain_seg.teachers import _weights
from selftrain_seg.teachers.mean import MeanTeacher

__all__ = ["DualTeacher"]


class DualTeacher(nn.Module):
    """Teach with two moving averages that take turns, usually by epoch.

    Only the teacher on duty labels and is updated, with ``d = min(1 - 1/(i+1), momentum)`` where i counts the
    updates *of its turn*: at i = 0 it becomes a copy of the student. That restart is what makes the teachers
    temporary and keeps them, and the student, apart. Each comes with a mixing augmentation of its own.

    Call ``switch()`` at the start of each epoch but the first, and in each step ``update(student)`` before the
    teacher labels; then a turn's first labels are the student's, not those of the turn before.

    Args:
        student: the network to copy; its wrappers are left out. It is not changed.
        momentum: d's upper limit, in [0, 1]. Dual Teacher: 0.99.
        mixing: one augmentation a teacher, for ``mixing``. Any two objects; by default functions of
            ``selftrain_seg.mining``.
        buffers: as in ``MeanTeacher``.
        train_mode: as in ``MeanTeacher``.
        dropout: as in ``MeanTeacher``.
        sync_buffers: as in ``MeanTeacher``.

    Attributes:
        teachers: the two ``MeanTeacher``.

    State / distributed:
        Both teachers, their steps and ``turn`` (() int64, the number of switches) are buffers in ``state_dict``. For
        ranks see ``MeanTeacher``; switch on all of them.

    Raises:
        TypeError: ``student`` is no ``torch.nn.Module``; ``momentum`` is no number.
        ValueError: ``momentum`` or ``buffers`` is out of range, ``mixing`` is not a pair; the student cannot be
            copied.

    References:
        Na et al., "Switching Temporary Teachers for Semi-Supervised Semantic Segmentation", NeurIPS 2023,
        arXiv:2310.18640.

    Example:
        >>> import torch
        >>> student = torch.nn.Conv2d(3, 2, 1)
        >>> teacher = DualTeacher(student)
        >>> for epoch in range(2):
        ...     if epoch:
        ...         teacher.switch()
        ...     for step in range(3):
        ...         teacher.update(student)
        ...         logits = teacher(torch.rand(1, 3, 4, 4))
        >>> teacher.active, teacher.mixing.__name__
        (1, 'class_mix')
    """

    turn: Tensor

    def __init__(
        self,
        student: nn.Module,
        *,
        momentum: float = 0.99,
        mixing: tuple[Callable[..., Any], Callable[..., Any]] = (cut_mix, class_mix),
        buffers: str = "copy",
        train_mode: bool = False,
        dropout: bool = False,
        sync_buffers: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(mixing, (tuple, list)) or len(mixing) != 2:
            raise ValueError(f"`mixing`: expected a pair, got {mixing!r}")
        self._mixing = tuple(mixing)
        self.teachers = nn.ModuleList(
            MeanTeacher(
                student,
                momentum=momentum,
                buffers=buffers,
                train_mode=train_mode,
                dropout=dropout,
                sync_buffers=sync_buffers,
            )
            for _ in range(2)
        )
        self._turn = 0  # the same number as in the buffer, on the host
        self.register_buffer("turn", self._on_duty().step.clone())
        self.register_load_state_dict_pre_hook(_weights.rename_keys)  # type: ignore[no-untyped-call]

    @property
    def active(self) -> int:
        """Number of the teacher on duty, 0 or 1."""
        return self._turn % 2

    @property
    def mixing(self) -> Callable[..., Any]:
        """The mixing augmentation of the teacher on duty."""
        chosen: Callable[..., Any] = self._mixing[self.active]
        return chosen

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the teacher on duty, without gradient.

        Args:
            images: (B, 3, H, W), as the student takes them.

        Returns:
            As ``MeanTeacher``.
        """
        logits: Tensor = self._on_duty()(images)
        return logits

    def update(self, student: nn.Module) -> None:
        """Move the teacher on duty towards the student; the other one rests.

        Args:
            student: the network the teachers were made from, wrapped or not.

        Raises:
            TypeError: ``student`` is no ``torch.nn.Module``.
            ValueError: its parameters or buffers are not those of the teachers.
        """
        self._on_duty().update(student)

    def switch(self) -> None:
        """Hand over to the other teacher, whose warm-up starts again."""
        self._turn += 1
        self.turn += 1
        self._on_duty().restart()

    def _on_duty(self) -> MeanTeacher:
        return cast(MeanTeacher, self.teachers[self.active])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._turn = int(self.turn)
