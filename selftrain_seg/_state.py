"""Base class of modules with state: initial values, reduction over ranks, checkpoints and devices."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from selftrain_seg.distributed.reduce import all_reduce_sum, rank_and_ranks

__all__ = ["Stateful"]

_SAVED_BY = "saved_by"


class Stateful(nn.Module):
    """A module that declares each state tensor with ``add_state``.

    States are in ``state_dict`` and follow ``.to(device)``. They are not buffers, so ``DistributedDataParallel`` does
    not overwrite them with those of rank 0, and ``.half()`` does not round them.

    A state that is summed over ranks holds the share of this rank, so every rank saves and loads its own checkpoint. On
    several ranks, rank 0 loads the checkpoint of a single process and the others start empty; the checkpoint of another
    rank is refused unless it is empty. A single process loads the share of any rank, for example to merge them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._defaults: dict[str, Tensor] = {}
        self._over_ranks: dict[str, Callable[[Tensor], Tensor] | None] = {}
        self._not_saved: set[str] = set()
        self._on_host: set[str] = set()

    def add_state(
        self,
        name: str,
        default: Tensor,
        *,
        over_ranks: Literal["sum"] | None = None,
        persistent: bool = True,
        on_host: bool = False,
    ) -> None:
        """Declare a state.

        Args:
            name: name of the attribute.
            default: initial value, restored by ``reset``. An expanded tensor is not copied.
            over_ranks: how ``reduced`` combines the values of the ranks; None if they are equal on all ranks.
            persistent: whether it is in ``state_dict``; False for a setting that only follows the device.
            on_host: whether it stays on its device when the module moves, for example because it is too large for a
                GPU.
        """
        with torch.inference_mode(False):  # a tensor made in inference mode cannot be changed outside it
            self._defaults[name] = default.detach() if 0 in default.stride() else default.detach().clone()
            setattr(self, name, default.detach().clone())
        if not persistent:
            self._not_saved.add(name)
        if on_host:
            self._on_host.add(name)
        self._over_ranks[name] = {"sum": all_reduce_sum, None: None}[over_ranks]

    def extra_repr(self) -> str:
        """Return the arguments of the constructor that are attributes, except states."""
        names = [name for name in inspect.signature(type(self)).parameters if name not in self._defaults]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names if hasattr(self, name))

    def reset(self) -> None:
        """Reset the state to its initial values, that of inner modules too; settings do not change."""
        for name, default in self._defaults.items():
            self._set(name, default)
        for module in self.children():
            if isinstance(module, Stateful):
                module.reset()

    def reduced(self, *names: str) -> list[Tensor]:
        """Return states combined over ranks. A collective; states of one dtype and rule share an all-reduce."""
        states = {name: getattr(self, name) for name in names}
        groups: dict[Any, list[str]] = {}
        for name, state in states.items():
            groups.setdefault((self._over_ranks[name], state.dtype), []).append(name)
        for (combine, _), group in groups.items():
            if combine is None:
                continue
            flat = combine(torch.cat([states[name].flatten() for name in group]))
            sizes = [states[name].numel() for name in group]
            for name, part in zip(group, flat.split_with_sizes(sizes), strict=True):
                states[name] = part.view(states[name].shape)
        return list(states.values())

    def add_sums(self, other: Any, kind: type[Stateful], *settings: str) -> None:
        """Add the states of ``other`` that are summed over ranks; it must be a ``kind`` with the same ``settings``."""
        if not isinstance(other, kind):
            raise TypeError(f"`other`: expected a {kind.__name__}, got {type(other).__name__}")
        self.check_same(other, *settings)
        for name, combine in self._over_ranks.items():
            if combine is all_reduce_sum:
                mine = getattr(self, name)
                mine += getattr(other, name).to(mine.device)

    def check_same(self, other: Stateful, *settings: str) -> None:
        """Check that another module, to be merged into this one, has the same settings."""
        for name in settings:
            mine, its = getattr(self, name), getattr(other, name)
            if mine != its:
                raise ValueError(f"`other`: expected {name} = {mine!r}, got {its!r}")

    def check_home(self, value: Tensor, name: str) -> None:
        """Check that a batch is on the device of the state, since moving either at every call would be slow."""
        home = next(iter(self._defaults.values())).device
        if value.device != home:
            raise ValueError(
                f"`{name}`: expected device {home}, on which this {type(self).__name__} keeps its state, got "
                f"{value.device}; move the {type(self).__name__} once with .to({str(value.device)!r})"
            )

    def _set(self, name: str, value: Tensor) -> None:
        """Set a state, in place unless its size changes."""
        state = getattr(self, name)
        if state.shape == value.shape:
            state.copy_(value)
            return
        with torch.inference_mode(False):
            setattr(self, name, value.to(state.device, state.dtype, copy=True))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Stateful:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        with torch.inference_mode(False):
            for name, default in self._defaults.items():
                if name in self._on_host:
                    continue
                device = fn(default.new_empty(0)).device
                self._defaults[name] = default.to(device)
                setattr(self, name, getattr(self, name).to(device))
        return self

    def _is_share(self) -> bool:
        return any(rule is all_reduce_sum for rule in self._over_ranks.values())

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in (name for name in self._defaults if name not in self._not_saved):
            destination[prefix + name] = getattr(self, name).detach()
        if self._is_share():
            destination[prefix + _SAVED_BY] = torch.tensor(rank_and_ranks())

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        loads = True
        if self._is_share():
            saved_by = state_dict.pop(prefix + _SAVED_BY, None)
            loads = self._holds_nothing(state_dict, prefix) or _loads_share(saved_by, type(self).__name__)
        for name, default in self._defaults.items():
            if name in self._not_saved:
                continue
            saved = state_dict.pop(prefix + name, None)
            if saved is None:
                missing_keys.append(prefix + name)
            elif saved.shape[1:] != default.shape[1:] or (saved.shape != default.shape and not self._grows(name)):
                error_msgs.append(f"`{prefix}{name}`: expected shape {tuple(default.shape)}, got {tuple(saved.shape)}")
            else:
                self._set(name, saved if loads or self._over_ranks[name] is None else default)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _holds_nothing(self, state_dict: dict[str, Any], prefix: str) -> bool:
        """Whether all summed states equal their defaults; every rank can load such a checkpoint."""
        for name, default in self._defaults.items():
            saved = state_dict.get(prefix + name, default)
            if self._over_ranks[name] is all_reduce_sum and (
                saved.shape != default.shape or not bool((saved.to(default.device) == default).all())
            ):
                return False
        return True

    def _grows(self, name: str) -> bool:
        """Whether the number of rows of a state grows with the values it has seen."""
        return self._defaults[name].shape[:1] == (0,)


def _loads_share(saved_by: Tensor | None, owner: str) -> bool:
    """Whether this rank loads the summed states of a checkpoint that ``saved_by`` = (rank, ranks) has written."""
    rank, ranks = rank_and_ranks()
    its_rank, its_ranks = (0, 1) if saved_by is None else (int(value) for value in saved_by)
    if ranks == 1 or (its_rank, its_ranks) == (rank, ranks):
        return True
    if its_ranks == 1:
        return rank == 0
    raise ValueError(
        f"`state_dict`: expected the {owner} state saved by rank {rank} of {ranks} or by a single process, got that of "
        f"rank {its_rank} of {its_ranks}; it holds the share of that rank, so let every rank save and load its own"
    )
