"""What all teachers do with weights: unwrap, pair by name, average."""

from __future__ import annotations

import copy
import functools
import types
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
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


# Where a module keeps the functions that run before, after and around it.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def copied(network: nn.Module) -> nn.Module:
    """Copy a network without what its user hung on it: functions are not copied, and would serve two networks.

    Hooks that are methods of the network's modules, and torch's own (``weight_norm``, ``spectral_norm``, pruning), are
    part of it and are copied. Other hooks are left out, with a warning that names them. A ``forward`` that was replaced
    on a module is refused where it would go on calling the student.
    """
    modules = dict(network.named_modules())
    ids = {id(module) for module in modules.values()}
    for name, module in modules.items():
        check_forward(name or "student", module)
    memo: dict[int, Any] = {}
    left_out: list[str] = []
    for module in modules.values():
        for kind in _HOOKS:
            memo[id(getattr(module, kind))] = OrderedDict()
    copy_ = copy.deepcopy(network, memo)
    for name, module in modules.items():
        for kind in _HOOKS:
            for key, hook in getattr(module, kind).items():
                if type(hook).__module__.startswith("torch.") or (_owner(hook) in ids and not _refers(hook)):
                    getattr(memo[id(module)], kind)[key] = copy.deepcopy(hook, memo)
                else:
                    left_out.append(f"{name or 'student'} ({getattr(hook, '__name__', type(hook).__name__)})")
    if left_out:
        warnings.warn(
            f"the teacher leaves out {len(left_out)} hooks of the student, which would store its outputs over the"
            f" student's: {', '.join(left_out[:5])}{', …' if len(left_out) > 5 else ''}. If the network's output"
            " depends on them, make them methods of its modules",
            stacklevel=3,
        )
    return copy_


def check_forward(name: str, module: nn.Module) -> None:
    """Refuse a ``forward`` on the instance that a copy would share: a function, or one that holds a module."""
    forward = vars(module).get("forward")
    if forward is None or "_orig_mod" in module._modules or isinstance(module, torch.jit.ScriptModule):
        return
    if isinstance(forward, types.FunctionType) or _refers(forward):
        raise ValueError(
            f"`student`: expected modules with their own forward, got {name} with one that was put on it and that a"
            " copy would share with the student; make the teacher outside of `drop_blocks` and"
            " `perturb_features`, and before the student's forward is replaced"
        )


def _owner(function: Any) -> int:
    return id(function.__self__) if isinstance(function, types.MethodType) else -1


def _refers(function: Any) -> bool:
    """Whether a function holds a module, or a method of one, in a place that is not copied with it."""
    if isinstance(function, functools.partial):
        return _refers(function.func)
    if isinstance(function, types.MethodType):
        return _refers(function.__func__)
    for cell in getattr(function, "__closure__", None) or ():
        try:
            held = cell.cell_contents
        except ValueError:  # not yet bound
            continue
        if isinstance(held, (nn.Module, functools.partial)) or isinstance(getattr(held, "__self__", None), nn.Module):
            return True
        if isinstance(held, types.FunctionType) and held is not function and _refers(held):
            return True
    return False


def check_module(value: Any, name: str) -> None:
    if not isinstance(value, nn.Module):
        raise TypeError(f"`{name}`: expected a torch.nn.Module, got {type(value).__name__}")


def canonical(name: str) -> str:
    """A parameter's name without what wrappers inside the network add."""
    if not any(part in name for part in _WRAPPERS):
        return name
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


class Tensors(NamedTuple):
    """A network's parameters and its buffers by canonical name, shared ones once."""

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]


def by_name(network: nn.Module) -> Tensors:
    found, seen = Tensors({}, {}), set()
    for place, module in network.named_modules():  # once for both: half of the time of two of torch's generators
        start = canonical(place) + "." if place else ""
        for kind, own in ((found.parameters, module._parameters), (found.buffers, module._buffers)):
            for name, tensor in own.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    kind[start + name] = tensor
    return found


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


def reshard(module: nn.Module) -> None:
    """Let FSDP2 drop what it has gathered: after a forward pass without a backward one it keeps whole parameters."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    from torch.distributed.fsdp import FSDPModule  # slow to import, and of no use without ranks

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


class Group(NamedTuple):
    """Targets of one device and dtype, and their sources, of one device and dtype too."""

    targets: list[Tensor]
    sources: list[Tensor]
    alike: bool  # whether the sources have the targets' device and dtype


def grouped(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> list[Group]:
    """Sort pairs into groups for ``average_``."""
    groups: dict[Any, Group] = {}
    for target, source in zip(targets, sources, strict=True):
        kind = target.device, target.dtype, source.device, source.dtype
        if kind not in groups:
            groups[kind] = Group([], [], kind[:2] == kind[2:])
        groups[kind].targets.append(_local(target))
        groups[kind].sources.append(_local(source))
    return list(groups.values())


def average_(groups: Iterable[Group], momentum: float) -> None:
    """``target ← momentum · target + (1 - momentum) · source``, in a few calls for all tensors.

    Sources are converted to their targets' device and dtype. Momentum 0 copies.
    """
    average = get_ema_multi_avg_fn(momentum)  # type: ignore[no-untyped-call]
    for own, other, alike in groups:
        if momentum == 0.0:
            torch._foreach_copy_(own, other)
        elif alike:
            average(own, other, 0)
        else:
            for part in parts(len(own)):
                converted = [torch.empty_like(tensor) for tensor in own[part]]
                torch._foreach_copy_(converted, other[part])
                average(own[part], converted, 0)


def parts(count: int) -> Iterator[slice]:
    """Cut a list of tensors into short ones, so that temporary copies of them are never all there at once."""
    for start in range(0, count, 16):
        yield slice(start, start + 16)


def mean_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor averaged over the ranks, by one all-reduce; in float64, so that equal values stay as they are."""
    if not tensors:
        return []
    ones = torch.ones(1, dtype=torch.float64, device=tensors[0].device)
    flat = torch.cat([ones, *(tensor.to(ones).flatten() for tensor in tensors)])
    flat = all_reduce_sum(flat)
    parts = (flat[1:] / flat[0]).split_with_sizes([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).to(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a ``DTensor``, as FSDP2's parameters are."""
    return hasattr(tensor, "placements")


def whole(tensor: Tensor) -> Tensor:
    """What the ranks' parts of a sharded tensor make together; any other tensor itself."""
    full_tensor = getattr(tensor, "full_tensor", None)
    return tensor if full_tensor is None else full_tensor()


def rename_keys(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give the entries of a checkpoint the names of this module's, whatever wrapped either when it was saved."""
    own = {canonical(name): prefix + name for name in module.state_dict()}
    for key in [key for key in state_dict if key.startswith(prefix)]:
        plain = canonical(key.removeprefix(prefix))
        while plain.startswith("module."):  # teachers have nothing of that name at the top, networks may
            plain = plain.removeprefix("module.")
        name = own.get(plain, key)
        if name not in state_dict:
            state_dict[name] = state_dict.pop(key)


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that FSDP2 has sharded; any other tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "") or "none"
