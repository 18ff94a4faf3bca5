"""What all teachers do with weights: unwrap, pair by name, average."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from selftrain_seg.distributed import all_reduce_sum

# Parts of parameter names that wrappers inside a network add.
_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module"})


def unwrap(module: nn.Module) -> nn.Module:
    """Return the network inside ``DistributedDataParallel``, ``DataParallel`` and ``torch.compile``."""
    while True:
        if isinstance(module, (DataParallel, DistributedDataParallel)):
            module = module.module
        elif "_orig_mod" in module._modules:
            module = module.get_submodule("_orig_mod")
        else:
            return module


def check_module(value: Any, name: str) -> None:
    if not isinstance(value, nn.Module):
        raise TypeError(f"`{name}`: expected a torch.nn.Module, got {type(value).__name__}")


def canonical(name: str, *, outer: bool = False) -> str:
    """A parameter's name without what wrappers add; with ``outer`` without ``module.`` too."""
    drop = _WRAPPERS | {"module"} if outer else _WRAPPERS
    return ".".join(part for part in name.split(".") if part not in drop)


def by_name(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {canonical(name): tensor.detach() for name, tensor in named}


def check_pairs(kind: str, own: Mapping[str, Tensor], student: Mapping[str, Tensor]) -> None:
    """The student has what the teacher was made from: the same names and shapes, sharded alike."""
    if own.keys() != student.keys():
        raise ValueError(
            f"`student`: expected the {kind} that the teacher was made from; "
            f"missing: {_some(own.keys() - student.keys())}; added: {_some(student.keys() - own.keys())}"
        )
    for name, tensor in own.items():
        if tensor.shape != student[name].shape:
            raise ValueError(
                f"`student`: expected shape {tuple(tensor.shape)} for {name}, got {tuple(student[name].shape)}"
            )
        if getattr(tensor, "placements", None) != getattr(student[name], "placements", None):
            raise ValueError(f"`student`: {name} is sharded otherwise than in the teacher; shard both alike")


def average_(targets: Sequence[Tensor], sources: Sequence[Tensor], momentum: float) -> None:
    """``target ← momentum · target + (1 - momentum) · source``, in a few calls for all tensors.

    The tensors of a call share device and dtype; sources are converted to their target's.
    """
    groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
    for target, source in zip(targets, sources, strict=True):
        own, other = groups[target.device, target.dtype]
        own.append(_local(target))
        other.append(_local(source).to(target.device, target.dtype, non_blocking=True))
    for own, other in groups.values():
        if momentum == 0.0:
            torch._foreach_copy_(own, other)
        else:
            get_ema_multi_avg_fn(momentum)(own, other, 0)  # type: ignore[no-untyped-call]


def mean_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor averaged over the ranks, by one all-reduce; in float64, so that equal values stay as they are."""
    if not tensors:
        return []
    ones = torch.ones(1, dtype=torch.float64, device=tensors[0].device)
    flat = torch.cat([ones, *(tensor.to(ones).flatten() for tensor in tensors)])
    flat = all_reduce_sum(flat)
    parts = (flat[1:] / flat[0]).split_with_sizes([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).to(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that FSDP2 has sharded; any other tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "") or "none"
