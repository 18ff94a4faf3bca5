"""The mean teacher: an exponential moving average of the student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from selftrain_seg import _checks
from selftrain_seg.distributed.reduce import rank_and_ranks
from selftrain_seg.outputs import find
from selftrain_seg.teachers import _weights
from selftrain_seg.teachers._plan import Plan, Steps

__all__ = ["MeanTeacher"]

_HALF = (torch.float16, torch.bfloat16)


class MeanTeacher(nn.Module):
    """Teach with a moving average of the student's weights.

    ``θ' ← d θ' + (1 - d) θ`` with ``d = min(1 - 1/(i+1), momentum)`` at update i = 0, 1, …, so the first update
    copies the student. Without ``warmup``, d is ``momentum`` from the start. Calling the teacher returns logits
    without gradient.

    Call ``update(student)`` after each optimizer step. The student may be wrapped in ``DistributedDataParallel`` or
    ``torch.compile`` at any time. For FSDP2, make the teacher first and shard both: ``fully_shard(student)`` and
    ``fully_shard(teacher.model)``.

    Args:
        student: the network to copy, without its wrappers. It is not modified. Hooks are copied if they are methods of
            its modules or torch's own; others are left out, with a warning that names them.
        momentum: upper limit of d, in [0, 1]. Mean teachers: 0.99 to 0.9999.
        warmup: whether d grows from 0 as above.
        buffers: treatment of floating-point buffers (BatchNorm's running statistics): "copy" copies the student's,
            "average" averages them like weights; both copy integer buffers. "keep" keeps all buffers of the teacher;
            the student's may then have other names and shapes.
        train_mode: whether BatchNorm and other layers with running statistics use the statistics of the batch, as in
            training. All other layers are in evaluation mode unless ``dropout``. ``.train()`` and ``.eval()`` do not
            change these modes.
        dropout: whether, with ``train_mode``, all layers are in training mode, including dropout and stochastic depth.
        sync_buffers: whether the student's floating-point buffers are averaged over ranks first. ``update`` is then
            a collective: all ranks must call it. Use it if all ranks update a teacher and the network has BatchNorm
            without SyncBatchNorm; otherwise the buffers of the teachers differ. Without it, ``update`` does not
            communicate.

    Attributes:
        model: the averaged network, in the student's dtype.
        step: () int64, number of updates (since ``restart``).

    State / distributed:
        Weights, buffers and ``step`` are in ``state_dict``, which loads with or without ``module.`` and ``_orig_mod.``
        in its keys. Half-precision weights are averaged in float32 copies (``shadow``, also in the state_dict), because
        rounding to half precision would cancel the updates at momentum 0.999. If student and buffers are equal on all
        ranks (see ``sync_buffers``), so is the teacher, bit for bit. No weights are sent, so the teacher may exist on
        one rank only.

    Raises:
        TypeError: ``student`` is not a ``torch.nn.Module``; ``momentum`` is not a number.
        ValueError: ``momentum`` or ``buffers`` is out of range; the student cannot be copied, or the ``forward`` of a
            module was replaced by a function, as inside ``drop_blocks``.

    Warns:
        UserWarning: hooks of the student are left out.

    References:
        Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, arXiv:1703.01780.

    Example:
        >>> import torch
        >>> student = torch.nn.Conv2d(3, 2, 1)
        >>> teacher = MeanTeacher(student, momentum=0.9)
        >>> _ = torch.nn.init.zeros_(student.bias)
        >>> teacher.update(student)  # d = 0
        >>> _ = torch.nn.init.ones_(student.bias)
        >>> teacher.update(student)  # d = 1 - 1/2
        >>> teacher.model.bias
        Parameter containing:
        tensor([0.5000, 0.5000])
        >>> teacher(torch.rand(1, 3, 4, 4)).requires_grad
        False
    """

    step: Tensor

    def __init__(
        self,
        student: nn.Module,
        *,
        momentum: float = 0.999,
        warmup: bool = True,
        buffers: str = "copy",
        train_mode: bool = False,
        dropout: bool = False,
        sync_buffers: bool = False,
    ) -> None:
        super().__init__()
        _weights.check_module(student, "student")
        _checks.check_real(momentum, "momentum", 0.0, 1.0)
        _checks.check_choice(buffers, "buffers", ("copy", "average", "keep"))
        self.momentum, self.warmup, self.buffer_rule = float(momentum), bool(warmup), buffers
        self.train_mode, self.dropout, self.sync_buffers = bool(train_mode), bool(dropout), bool(sync_buffers)
        try:
            model = _weights.copied(_weights.unwrap(student))
        except (AssertionError, RuntimeError, TypeError) as error:
            raise ValueError(
                "`student`: expected a network that can be deep-copied (make the teacher before the student is "
                f"sharded or run): {error}"
            ) from error
        if any(nn.parameter.is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
            raise ValueError("`student`: expected initialised parameters; run the student once first")
        self.model = model.requires_grad_(False)
        self.shadow = _Shadow()
        for name, tensor in self._averaged(_weights.by_name(self.model)).items():
            if tensor.dtype in _HALF:
                self.shadow.add(name, tensor)
        parameter = next(self.model.parameters(), torch.empty(0))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device=parameter.device))
        self._steps = 0  # copy of the buffer on the host, to avoid waiting for the device
        self._plan = Plan()
        self.register_load_state_dict_pre_hook(_weights.rename_keys)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_match_shadow)  # type: ignore[no-untyped-call]
        self.train(self.training)

    def extra_repr(self) -> str:  # noqa: D102
        return f"momentum={self.momentum}, warmup={self.warmup}, buffers={self.buffer_rule!r}"

    @property
    def next_momentum(self) -> float:
        """The momentum d of the next update."""
        return min(1 - 1 / (self._steps + 1), self.momentum) if self.warmup else self.momentum

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the teacher's logits, without gradient.

        Args:
            images: (B, 3, H, W), the input of the student.

        Returns:
            The logits (B, C, h, w) that ``selftrain_seg.as_logits`` finds in the output of the network, at the
            resolution of the network.

        Raises:
            TypeError: the output has no logits.
            ValueError: the output has several tensors that could be the logits.
        """
        return find(self.model(images))

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Move the teacher towards the student. No host synchronisation if both are on the same device.

        Args:
            student: the network the teacher was made from, wrapped or not, on any device.

        Raises:
            TypeError: ``student`` is not a ``torch.nn.Module``.
            ValueError: parameters or buffers were added, removed or changed in shape (the message names them); only
                one of the two networks is sharded, or both are and have half-precision weights.
        """
        _weights.check_module(student, "student")
        student = _weights.unwrap(student)
        synced = self.sync_buffers and self.buffer_rule != "keep" and rank_and_ranks()[1] > 1
        steps = None if synced else self._plan.find(student, self.buffer_rule)
        if steps is None:
            steps = self._steps_for(student, synced)
        _weights.average_(steps.averaged, self.next_momentum)
        _weights.average_(steps.copied, 0.0)
        self.step += 1
        self._steps += 1

    def _steps_for(self, student: nn.Module, synced: bool) -> Steps:
        """Pair the tensors by name, or reuse the cached pairs."""
        _weights.reshard(student)
        _weights.reshard(self.model)
        own, other = _weights.by_name(self.model), _weights.by_name(student)
        if self.buffer_rule == "keep":
            own, other = own._replace(buffers={}), other._replace(buffers={})
        _weights.check_pairs("parameters", own.parameters, other.parameters)
        _weights.check_pairs("buffers", own.buffers, other.buffers)
        targets, sources = {**own.parameters, **own.buffers}, {**other.parameters, **other.buffers}
        averaged = list(self._averaged(own))
        shadowed = [name for name in averaged if name in self.shadow]
        if any(_weights.is_sharded(sources[name]) for name in shadowed):
            raise ValueError(
                "`student`: expected float32 weights in a sharded network (see MixedPrecisionPolicy), "
                f"got {sources[shadowed[0]].dtype}"
            )

        floats = [name for name, tensor in own.buffers.items() if tensor.is_floating_point()]
        if synced:
            sources.update(zip(floats, _weights.mean_over_ranks([sources[name] for name in floats]), strict=True))
        not_copied = {*averaged, *(floats if self.buffer_rule == "keep" else ())}
        copied = [name for name in targets if name not in not_copied]
        shadows = [self.shadow[name] if name in self.shadow else targets[name] for name in averaged]
        steps = Steps(
            _weights.grouped(shadows, [sources[name] for name in averaged]),
            [
                *_weights.grouped([targets[name] for name in shadowed], [self.shadow[name] for name in shadowed]),
                *_weights.grouped([targets[name] for name in copied], [sources[name] for name in copied]),
            ],
        )
        if not synced:
            self._plan.keep(student, self, self.buffer_rule, steps)
        return steps

    def restart(self) -> None:
        """Restart the warm-up: the next update copies the student."""
        self.step.zero_()
        self._steps = 0

    def train(self, mode: bool = True) -> MeanTeacher:
        """Set the mode of this module only; the network keeps the mode chosen by ``train_mode``.

        Args:
            mode: as in ``torch.nn.Module``.

        Returns:
            The teacher itself.
        """
        super().train(mode)
        self.model.train(self.train_mode and self.dropout)
        for module in self.model.modules() if self.train_mode else ():
            if "running_mean" in module._buffers:
                module.training = True
        return self

    def _averaged(self, own: _weights.Tensors) -> dict[str, Tensor]:
        """The tensors to average: floating-point parameters and, with "average", floating-point buffers."""
        tensors = {**own.parameters, **own.buffers} if self.buffer_rule == "average" else own.parameters
        return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MeanTeacher:
        before = {name: tensor.detach() for name, tensor in self._averaged(_weights.by_name(self.model)).items()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        now = self._averaged(_weights.by_name(self.model))
        for name, tensor in now.items():  # keep full precision across casts to half and back
            if tensor.dtype in _HALF and name not in self.shadow:
                self.shadow.add(name, before[name].to(tensor.device))
            elif tensor.dtype not in _HALF and name in self.shadow:
                tensor.data.copy_(self.shadow.pop(name))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._steps = int(self.step)


class _Shadow(nn.Module):
    """Float32 copies of half-precision tensors by name. They move between devices but keep their dtype."""

    def add(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(_key(name), tensor.detach().to(torch.float32, copy=True))

    def pop(self, name: str) -> Tensor:
        tensor = self[name]
        delattr(self, _key(name))
        return tensor

    def __contains__(self, name: str) -> bool:
        return _key(name) in self._buffers

    def __getitem__(self, name: str) -> Tensor:
        return self.get_buffer(_key(name))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Shadow:
        for key, tensor in self.named_buffers():
            self._buffers[key] = tensor.to(fn(tensor).device)
        return self


def _key(name: str) -> str:
    return name.replace(".", "/")  # buffer names must not contain dots


def _match_shadow(teacher: MeanTeacher, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Adapt a checkpoint saved in another precision: add missing float32 copies and drop superfluous ones."""
    for name, _tensor in (*teacher.model.named_parameters(), *teacher.model.named_buffers()):
        own = _weights.canonical(name)
        weight, shadow = f"{prefix}model.{name}", f"{prefix}shadow.{_key(own)}"
        if own in teacher.shadow and weight in state_dict:
            state_dict.setdefault(shadow, state_dict[weight].float())
        elif own not in teacher.shadow and shadow in state_dict:
            state_dict[weight] = state_dict.pop(shadow)
