"""What a state is: how it starts, how ranks combine it, how it is saved, and where it lives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from selftrain_seg.distributed.reduce import all_reduce_sum, rank_and_ranks

__all__ = ["Stateful"]

_SAVED_BY = "saved_by"


class Stateful(nn.Module):
    """A module whose state is declared, one line a tensor, with ``add_state``.

    States are in ``state_dict`` and follow ``.to(device)``. They are no buffers: ``DistributedDataParallel`` does not
    overwrite them with those of rank 0, and ``.half()`` does not round them.

    What is added up over ranks is each rank's own share, and so is its checkpoint: every rank saves and loads its own.
    A checkpoint of one process is taken up by rank 0 and leaves the others empty; one of another rank is refused,
    unless it has nothing in it. A single process takes up whichever share it is given, to merge them, say.
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
            name: of the attribute that holds it.
            default: what it starts from and is reset to; kept as it is where it is one value expanded.
            over_ranks: how ``reduced`` combines the ranks' values; None if they are the same on all.
            persistent: whether it is in ``state_dict``; False for a setting that only moves along.
            on_host: whether it stays where it is when the others move, since it is too large for a GPU, say.
        """
        with torch.inference_mode(False):  # a tensor made in inference mode could never be changed outside of it
            self._defaults[name] = default.detach() if 0 in default.stride() else default.detach().clone()
            setattr(self, name, default.detach().clone())
        if not persistent:
            self._not_saved.add(name)
        if on_host:
            self._on_host.add(name)
        self._over_ranks[name] = {"sum": all_reduce_sum, None: None}[over_ranks]

    def reset(self) -> None:
        """Forget all batches; settings stay."""
        for name, default in self._defaults.items():
            self._set(name, default)

    def reduced(self, *names: str) -> list[Tensor]:
        """Return states combined over ranks, by one all-reduce if they share dtype and rule: a collective."""
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

    def check_home(self, value: Tensor, name: str) -> None:
        """A batch must be where the state is: moving either at every call would be slow, and nobody would notice."""
        home = next(iter(self._defaults.values())).device
        if value.device != home:
            raise ValueError(
                f"`{name}`: expected device {home}, where this {type(self).__name__} keeps its state, got "
                f"{value.device}; move it there once, by .to({str(value.device)!r})"
            )

    def _set(self, name: str, value: Tensor) -> None:
        """Give a state a value, in place unless its size changes."""
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
        takes = True
        if self._is_share():
            saved_by = state_dict.pop(prefix + _SAVED_BY, None)
            takes = self._holds_nothing(state_dict, prefix) or _takes(saved_by, type(self).__name__)
        for name, default in self._defaults.items():
            if name in self._not_saved:
                continue
            saved = state_dict.pop(prefix + name, None)
            if saved is None:
                missing_keys.append(prefix + name)
            elif saved.shape[1:] != default.shape[1:] or (saved.shape != default.shape and not self._grows(name)):
                error_msgs.append(f"`{prefix}{name}`: expected shape {tuple(default.shape)}, got {tuple(saved.shape)}")
            else:
                self._set(name, saved if takes or self._over_ranks[name] is None else default)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _holds_nothing(self, state_dict: dict[str, Any], prefix: str) -> bool:
        """Whether all that is added up over ranks is as after ``reset``: such a checkpoint fits every rank."""
        for name, default in self._defaults.items():
            saved = state_dict.get(prefix + name, default)
            if self._over_ranks[name] is all_reduce_sum and (
                saved.shape != default.shape or not bool((saved.to(default.device) == default).all())
            ):
                return False
        return True

    def _grows(self, name: str) -> bool:
        """Whether a state has as many rows as it has seen values."""
        return self._defaults[name].shape[:1] == (0,)


def _takes(saved_by: Tensor | None, owner: str) -> bool:
    """Whether this rank takes up what is added up over ranks, from a checkpoint of that rank of that many."""
    rank, ranks = rank_and_ranks()
    its_rank, its_ranks = (0, 1) if saved_by is None else (int(value) for value in saved_by)
    if ranks == 1 or (its_rank, its_ranks) == (rank, ranks):
        return True
    if its_ranks == 1:
        return rank == 0
    raise ValueError(
        f"`state_dict`: expected what rank {rank} of {ranks} saved of this {owner}, or a single process, got that of "
        f"rank {its_rank} of {its_ranks}; it holds that rank's share, so let every rank save and load its own"
    )
