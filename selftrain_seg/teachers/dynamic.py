"""A teacher that is updated only when the student has proved better."""

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
    """One time that a ``DynamicTeacher`` asked itself whether to follow the student.

    Attributes:
        step: batches observed so far, that is the number of the training step where each observes one.
        stored: batches in the query buffer.
        improved: share of them, over all ranks, on which the student's score has risen since it first saw them;
            NaN where the buffer was full, so that nothing was scored.
        updated: whether the teacher was updated (and the buffer emptied).
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

    ``observe`` keeps a target batch with the student's score on it; call it before the optimizer step. ``update``
    decides; call it after the step. Once ``first`` batches are kept, and then after every ``every`` more, it has the
    student scored again on all of them: if the score has risen on more than half, or if more than ``most`` are kept,
    the teacher is updated, ``θ' ← momentum θ' + (1 - momentum) θ``, and the buffer emptied. As the newest batch was
    scored before the step, it too is compared with a student that has learnt since.

    Both scores of a batch look at the same random pixels of the same kept images, so that they differ by the student
    alone, and the student is in evaluation mode for them.

    Args:
        student: the network to copy; its wrappers are left out. It is not changed.
        momentum: of the update, in [0, 1]. DT-ST: 0.99.
        score: "snd" for ``soft_neighbourhood_density``, "entropy" for ``entropy_score``.
        first: batches kept before the first decision. DT-ST: 9.
        every: batches between decisions. DT-ST: 3.
        most: if more batches than this are kept, the teacher is updated in any case. DT-ST: 30. The buffer holds at
            most ``max(first, most + every)`` where each step observes one batch.
        as_bytes: whether floating-point images are kept as bytes, in 256 levels from the least to the greatest value of
            each channel of each image: a quarter of the memory, and of a checkpoint. Images that were bytes lose next
            to nothing. False keeps them as they are; so are integer images in any case.
        store_on: device of the kept batches; None keeps them where they come from. The host waits for a copy from
            the GPU.
        buffers: as in ``MeanTeacher``.
        train_mode: as in ``MeanTeacher``.

    Attributes:
        teacher: the ``MeanTeacher``, without warm-up.
        history: list of ``TeacherDecision``, for plots.
        observed: () int64, batches observed so far.

    State / distributed:
        All is in ``state_dict``, the kept batches and the history too (as ``_extra_state``, tensors only). Counts are
        summed over ranks by one all-reduce a decision, so all ranks decide alike; each must observe equally often.
        As ``update`` is a collective anyway, it averages the student's floating-point buffers over ranks,
        as ``MeanTeacher`` does with ``sync_buffers``. A decision makes the host wait for the device.

    Raises:
        TypeError: ``student`` is no ``torch.nn.Module``; a number is of the wrong type.
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
        self._observed = 0  # the same number on the host
        self._queries: list[_Query] = []
        self._new = 0  # batches observed since the last decision
        self._unasked = 0  # batches observed since the last call of update
        self.history: list[TeacherDecision] = []
        self.register_load_state_dict_pre_hook(_weights.rename_keys)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:  # noqa: D102
        return f"score={self.score!r}, first={self.first}, every={self.every}, most={self.most}"

    @property
    def stored(self) -> int:
        """Batches kept at present."""
        return len(self._queries)

    def forward(self, images: Tensor) -> Tensor:
        """Return the teacher's logits, without gradient.

        Args:
            images: (B, 3, H, W), as the student takes them.

        Returns:
            As ``MeanTeacher``.
        """
        logits: Tensor = self.teacher(images)
        return logits

    @torch.no_grad()
    def observe(self, images: Tensor, student: nn.Module) -> None:
        """Keep a target batch with the student's score on it.

        Call it before the optimizer step that learns from the batch, or anywhere before it in the step. It costs one
        forward pass of the student.

        Args:
            images: (B, 3, H, W) as the student takes them.
            student: the network the teacher was made from, wrapped or not.

        Raises:
            TypeError: ``images`` is no tensor, ``student`` no ``torch.nn.Module``.
            RuntimeError: as many batches as the buffer holds have been observed, and ``update`` was not called.
        """
        _checks.check_tensor(images, "images")
        _weights.check_module(student, "student")
        if self._unasked >= max(self.first, self.most + self.every):
            raise RuntimeError(
                f"`observe`: {self._unasked} batches are kept since the last call of `update`, and only it empties the"
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
        """Follow the student if it is time to decide, and if it has improved on the kept batches.

        Call it after each optimizer step. At a decision it costs one forward pass of the student for each kept batch,
        else nothing.

        Args:
            student: the network the teacher was made from, wrapped or not.

        Returns:
            Whether the teacher was updated.

        Raises:
            TypeError: ``student`` is no ``torch.nn.Module``.
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
        """Share of the kept batches, of all ranks, on which the student is better than when it first saw them."""
        device, better = next(network.parameters(), self.observed).device, []
        for query in self._queries:
            now = self._measure(network, unpack(moved(query.images, device)), query.seed)
            better.append(now > query.score.to(now.device))
        number = torch.stack(better).sum()
        count = all_reduce_sum(torch.stack([number, number.new_tensor(self.stored)]))
        return float(count[0].double() / count[1])

    def get_extra_state(self) -> dict[str, Any]:
        """Give ``state_dict`` the kept batches and the history.

        Returns:
            Tensors in plain lists and dicts, for ``torch.load(..., weights_only=True)``.
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
        """Take the kept batches and the history out of a ``state_dict``.

        Args:
            state: what ``get_extra_state`` returned.

        Raises:
            ValueError: ``state`` is of a version whose ``observe`` decided.
        """
        if "new" not in state:
            raise ValueError("`state_dict`: expected that of a DynamicTeacher with `update`, got one of 0.1.0")
        images = [moved(Kept(*kept), self.store_on) for kept in state["images"]]
        scores = [score.to(self.observed.device) for score in state["scores"]]
        self._queries = [_Query(*query) for query in zip(images, scores, state["seeds"], strict=True)]
        self._new, self._unasked = state["new"], state["unasked"]
        self.history = [TeacherDecision(*decision) for decision in state["history"]]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._observed = int(self.observed)
