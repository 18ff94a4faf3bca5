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
    """Teach with two moving averages of the student that take turns, usually by epoch.

    Only the active teacher labels and is updated, with ``d = min(1 - 1/(i+1), momentum)`` where i counts the updates
    *of its turn*: at i = 0 it becomes a copy of the student. These restarts keep the teachers different from each other
    and from the student. Each teacher has its own mixing augmentation.

    Call ``switch()`` at the start of each epoch except the first, and ``update(student)`` in each step before the
    teacher labels, so that the first labels of a turn come from the student and not from the previous turn.

    Args:
        student: the network to copy, without its wrappers. It is not modified.
        momentum: upper limit of d, in [0, 1]. Dual Teacher: 0.99.
        mixing: one augmentation per teacher, returned by ``mixing``. Any two objects; by default functions of
            ``selftrain_seg.mining``.
        buffers: as in ``MeanTeacher``.
        train_mode: as in ``MeanTeacher``.
        dropout: as in ``MeanTeacher``.
        sync_buffers: as in ``MeanTeacher``.

    Attributes:
        teachers: the two ``MeanTeacher``.

    State / distributed:
        Both teachers, their steps and ``turn`` (() int64, the number of switches) are in ``state_dict``. Several ranks
        work as in ``MeanTeacher``; call ``switch`` on all of them.

    Raises:
        TypeError: ``student`` is not a ``torch.nn.Module``; ``momentum`` is not a number.
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
        self._turn = 0  # copy of the buffer on the host
        self.register_buffer("turn", self._on_duty().step.clone())
        self.register_load_state_dict_pre_hook(_weights.rename_keys)  # type: ignore[no-untyped-call]

    @property
    def active(self) -> int:
        """Index of the active teacher, 0 or 1."""
        return self._turn % 2

    @property
    def mixing(self) -> Callable[..., Any]:
        """The mixing augmentation of the active teacher."""
        chosen: Callable[..., Any] = self._mixing[self.active]
        return chosen

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the active teacher, without gradient.

        Args:
            images: (B, 3, H, W), the input of the student.

        Returns:
            As in ``MeanTeacher``.
        """
        logits: Tensor = self._on_duty()(images)
        return logits

    def update(self, student: nn.Module) -> None:
        """Move the active teacher towards the student.

        Args:
            student: the network the teachers were made from, wrapped or not.

        Raises:
            TypeError: ``student`` is not a ``torch.nn.Module``.
            ValueError: its parameters or buffers are not those of the teachers.
        """
        self._on_duty().update(student)

    def switch(self) -> None:
        """Activate the other teacher and restart its warm-up."""
        self._turn += 1
        self.turn += 1
        self._on_duty().restart()

    def _on_duty(self) -> MeanTeacher:
        return cast(MeanTeacher, self.teachers[self.active])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._turn = int(self.turn)
