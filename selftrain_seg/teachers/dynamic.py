"""A teacher that is updated only when the student has improved."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from selftrain_seg import _checks
from selftrain_seg.distributed import all_reduce_sum
from selftrain_seg.outputs import find
from selftrain_seg.teachers import _weights
from selftrain_seg.teachers._evaluating import evaluating
from selftrain_seg.teachers._kept import Kept, moved, pack, unpack
from selftrain_seg.teachers.mean import MeanTeacher
from selftrain_seg.teachers.scores import entropy_score, soft_neighbourhood_density

__all__ = ["DynamicTeacher", "TeacherDecision"]


class TeacherDecision(NamedTuple):
    """One decision of a ``DynamicTeacher`` whether to follow the student.

    Attributes:
        step: number of batches observed so far; the training step if each step observes one batch.
        stored: number of batches in the buffer.
        improved: share of the stored batches, over all ranks, on which the student's score has risen since it first
            saw them; NaN if the buffer was full, so that they were not scored again.
        updated: whether the teacher was updated and the buffer emptied.
    """

    step: int
    stored: int
    improved: float
    updated: bool


class _Query(NamedTuple):
    images: Kept
    score: Tensor
    seed: int


class DynamicTeacher(nn.Module):
    """Teach with a moving average that follows the student only when the student improves (DTU of DT-ST).

    Call ``observe`` before each optimizer step: it stores a target batch with the student's score on it. Call
    ``update`` after the step: when ``first`` batches are stored, and then after every ``every`` further ones, it
    scores the student again on all of them. If the score has risen on more than half of the batches, or if more than
    ``most`` are stored, the teacher is updated, ``θ' ← momentum θ' + (1 - momentum) θ``, and the buffer is emptied.

    Both scores of a batch use the same random pixels of the same stored images, with the student in evaluation mode,
    so they differ only by the student's weights.

    Args:
        student: the network to copy, without its wrappers. It is not modified.
        momentum: momentum of the update, in [0, 1]. DT-ST: 0.99.
        score: "snd" for ``soft_neighbourhood_density``, "entropy" for ``entropy_score``.
        first: number of batches before the first decision. DT-ST: 9.
        every: number of batches between decisions. DT-ST: 3.
        most: if more batches than this are stored, the teacher is updated in any case. DT-ST: 30. The buffer holds at
            most ``max(first, most + every)`` batches if each step observes one.
        as_bytes: whether floating-point images are stored as bytes, in 256 levels from the minimum to the maximum of
            each channel of each image. This takes a quarter of the memory, and images that were loaded from bytes lose
            almost nothing. Integer images are always stored unchanged.
        store_on: device of the stored batches; None for the device of the images. The host waits for a copy from the
            GPU.
        buffers: as in ``MeanTeacher``.
        train_mode: as in ``MeanTeacher``.

    Attributes:
        teacher: the ``MeanTeacher``, without warm-up.
        history: list of ``TeacherDecision``, for plots.
        observed: () int64, number of batches observed so far.

    State / distributed:
        The whole state is in ``state_dict``, including the stored batches and the history (as ``_extra_state``, tensors
        only). Each decision sums the counts over ranks by one all-reduce, so all ranks decide alike; each must observe
        the same number of batches. ``update`` is a collective; it also averages the student's floating-point buffers
        over ranks, as ``MeanTeacher`` does with ``sync_buffers``. A decision makes the host wait for the device.

    Raises:
        TypeError: ``student`` is not a ``torch.nn.Module``; a number is of the wrong type.
        ValueError: an argument is out of its range; the student cannot be copied.

    References:
        Zhao et al., "Towards Better Stability and Adaptability: Improve Online Self-Training for Model Adaptation
        in Semantic Segmentation", CVPR 2023.

    Example:
        >>> import torch
        >>> student = torch.nn.Conv2d(3, 2, 1)
        >>> teacher = DynamicTeacher(student, first=2, every=1, most=4)
        >>> optimizer = torch.optim.SGD(student.parameters(), lr=0.0)  # so that nothing improves
        >>> updated = []
        >>> for _ in range(5):
        ...     images = torch.rand(1, 3, 8, 8)
        ...     teacher.observe(images, student)
        ...     student(images).mean().backward()
        ...     optimizer.step()
        ...     updated.append(teacher.update(student))
        >>> updated  # until 5 > 4 batches are kept
        [False, False, False, False, True]
        >>> teacher.history[0]
        TeacherDecision(step=2, stored=2, improved=0.0, updated=False)
    """

    observed: Tensor

    def __init__(
        self,
        student: nn.Module,
        *,
        momentum: float = 0.99,
        score: str = "snd",
        first: int = 9,
        every: int = 3,
        most: int = 30,
        as_bytes: bool = True,
        store_on: torch.device | str | None = "cpu",
        buffers: str = "copy",
        train_mode: bool = False,
    ) -> None:
        super().__init__()
        _checks.check_choice(score, "score", ("snd", "entropy"))
        _checks.check_count(first, "first")
        _checks.check_count(every, "every")
        _checks.check_count(most, "most")
        self.score, self.first, self.every, self.most, self.as_bytes = score, first, every, most, bool(as_bytes)
        self.store_on = None if store_on is None else torch.device(store_on)
        self.teacher = MeanTeacher(
            student, momentum=momentum, warmup=False, buffers=buffers, train_mode=train_mode, sync_buffers=True
        )
        self.register_buffer("observed", self.teacher.step.clone())
        self._observed = 0  # copy of the buffer on the host
        self._queries: list[_Query] = []
        self._new = 0  # batches observed since the last decision
        self._unasked = 0  # batches observed since the last call of update
        self.history: list[TeacherDecision] = []
        self.register_load_state_dict_pre_hook(_weights.rename_keys)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:  # noqa: D102
        return f"score={self.score!r}, first={self.first}, every={self.every}, most={self.most}"

    @property
    def stored(self) -> int:
        """Number of stored batches."""
        return len(self._queries)

    def forward(self, images: Tensor) -> Tensor:
        """Return the teacher's logits, without gradient.

        Args:
            images: (B, 3, H, W), the input of the student.

        Returns:
            As in ``MeanTeacher``.
        """
        logits: Tensor = self.teacher(images)
        return logits

    @torch.no_grad()
    def observe(self, images: Tensor, student: nn.Module) -> None:
        """Store a target batch with the student's score on it.

        Call it before the optimizer step that trains on the batch. It costs one forward pass of the student.

        Args:
            images: (B, 3, H, W), the input of the student.
            student: the network the teacher was made from, wrapped or not.

        Raises:
            TypeError: ``images`` is not a tensor, or ``student`` is not a ``torch.nn.Module``.
            RuntimeError: the buffer is full because ``update`` was not called.
        """
        _checks.check_tensor(images, "images")
        _weights.check_module(student, "student")
        if self._unasked >= max(self.first, self.most + self.every):
            raise RuntimeError(
                f"`observe`: {self._unasked} batches are stored since the last call of `update`, which empties the"
                " buffer: call `update(student)` after each optimizer step"
            )
        network = _weights.unwrap(student)
        seed, kept = self._observed, pack(images, self.as_bytes)
        with evaluating(network):
            score = self._measure(network, unpack(kept), seed)
        self._queries.append(_Query(moved(kept, self.store_on), score, seed))
        self._observed += 1
        self.observed += 1
        self._new += 1
        self._unasked += 1

    @torch.no_grad()
    def update(self, student: nn.Module) -> bool:
        """Update the teacher if a decision is due and the student has improved on the stored batches.

        Call it after each optimizer step. A decision costs one forward pass of the student per stored batch; all other
        calls cost nothing.

        Args:
            student: the network the teacher was made from, wrapped or not.

        Returns:
            Whether the teacher was updated.

        Raises:
            TypeError: ``student`` is not a ``torch.nn.Module``.
            ValueError: the student's parameters or buffers are not those of the teacher.
        """
        _weights.check_module(student, "student")
        self._unasked = 0
        asked_before = self.stored > self._new
        if self.stored < self.first or (asked_before and self._new < self.every):
            return False
        network = _weights.unwrap(student)
        share = float("nan")
        if self.stored <= self.most:
            with evaluating(network):
                share = self._improved(network)
        decision = TeacherDecision(self._observed, self.stored, share, self.stored > self.most or share > 0.5)
        if decision.updated:
            self.teacher.update(student)
            self._queries.clear()
        self._new = 0
        self.history.append(decision)
        return decision.updated

    def _measure(self, network: nn.Module, images: Tensor, seed: int) -> Tensor:
        logits = find(network(images))
        if self.score == "entropy":
            return entropy_score(logits)
        generator = torch.Generator(logits.device).manual_seed(seed)
        return soft_neighbourhood_density(logits, generator=generator)

    def _improved(self, network: nn.Module) -> float:
        """Share of the stored batches of all ranks on which the student's score has risen."""
        device, better = next(network.parameters(), self.observed).device, []
        for query in self._queries:
            now = self._measure(network, unpack(moved(query.images, device)), query.seed)
            better.append(now > query.score.to(now.device))
        number = torch.stack(better).sum()
        count = all_reduce_sum(torch.stack([number, number.new_tensor(self.stored)]))
        return float(count[0].double() / count[1])

    def get_extra_state(self) -> dict[str, Any]:
        """Return the stored batches and the history for ``state_dict``.

        Returns:
            Tensors in plain lists and dicts, which ``torch.load(..., weights_only=True)`` reads.
        """
        return {
            "images": [list(query.images) for query in self._queries],
            "scores": [query.score for query in self._queries],
            "seeds": [query.seed for query in self._queries],
            "new": self._new,
            "unasked": self._unasked,
            "history": [list(decision) for decision in self.history],
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the stored batches and the history from a ``state_dict``.

        Args:
            state: from ``get_extra_state``.

        Raises:
            ValueError: ``state`` was saved by version 0.1.0.
        """
        if "new" not in state:
            raise ValueError(
                "`state_dict`: expected the state of a DynamicTeacher with `update`, got one saved by 0.1.0"
            )
        images = [moved(Kept(*kept), self.store_on) for kept in state["images"]]
        scores = [score.to(self.observed.device) for score in state["scores"]]
        self._queries = [_Query(*query) for query in zip(images, scores, state["seeds"], strict=True)]
        self._new, self._unasked = state["new"], state["unasked"]
        self.history = [TeacherDecision(*decision) for decision in state["history"]]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._observed = int(self.observed)
