"""Unwrap networks, pair their weights by name, and average them."""

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

from selftrain_seg._checks import some_names
from selftrain_seg.distributed import all_reduce_sum

# Parts that wrappers inside a network add to parameter names.
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


# Attributes in which a module keeps its hooks.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def copied(network: nn.Module) -> nn.Module:
    """Copy a network without its user's hooks, which the copy would share with the student.

    Hooks that are methods of the network's modules, and torch's own (``weight_norm``, ``spectral_norm``, pruning), are
    copied. All others are left out, with a warning that names them. A replaced ``forward`` that would still call the
    student raises an error.
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
            f"the teacher leaves out {len(left_out)} hooks of the student, because both networks would share them:"
            f" {', '.join(left_out[:5])}{', …' if len(left_out) > 5 else ''}. If the output of the network"
            " depends on them, make them methods of its modules",
            stacklevel=3,
        )
    return copy_


def check_forward(name: str, module: nn.Module) -> None:
    """Raise an error if the instance has its own ``forward`` that a copy would share with it."""
    forward = vars(module).get("forward")
    if forward is None or "_orig_mod" in module._modules or isinstance(module, torch.jit.ScriptModule):
        return
    if isinstance(forward, types.FunctionType) or _refers(forward):
        raise ValueError(
            f"`student`: expected modules with the forward of their class, got {name} with a replaced one, which"
            " teacher and student would share; make the teacher outside of `drop_blocks` and `perturb_features`, and"
            " before replacing any forward"
        )


def _owner(function: Any) -> int:
    return id(function.__self__) if isinstance(function, types.MethodType) else -1


def _refers(function: Any) -> bool:
    """Whether a function refers to a module, or a method of one, through its closure, which is not copied."""
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
    """The name of a parameter without the parts that wrappers inside the network add."""
    if not any(part in name for part in _WRAPPERS):
        return name
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


class Tensors(NamedTuple):
    """Parameters and buffers of a network by canonical name; shared ones once."""

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]


def by_name(network: nn.Module) -> Tensors:
    found, seen = Tensors({}, {}), set()
    for place, module in network.named_modules():  # one pass takes half the time of two
        start = canonical(place) + "." if place else ""
        for kind, own in ((found.parameters, module._parameters), (found.buffers, module._buffers)):
            for name, tensor in own.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    kind[start + name] = tensor
    return found


def check_pairs(kind: str, own: Mapping[str, Tensor], student: Mapping[str, Tensor]) -> None:
    """Check that the student's tensors have the names, shapes and sharding of the teacher's."""
    if own.keys() != student.keys():
        raise ValueError(
            f"`student`: expected the {kind} that the teacher was made from; "
            f"missing: {some_names(own.keys() - student.keys())}; added: {some_names(student.keys() - own.keys())}"
        )
    for name, tensor in own.items():
        if tensor.shape != student[name].shape:
            raise ValueError(
                f"`student`: expected shape {tuple(tensor.shape)} for {name}, got {tuple(student[name].shape)}"
            )
        if getattr(tensor, "placements", None) != getattr(student[name], "placements", None):
            raise ValueError(f"`student`: expected {name} to be sharded as in the teacher; shard both in the same way")


def reshard(module: nn.Module) -> None:
    """Free the parameters that FSDP2 gathered; it keeps them after a forward pass without a backward pass."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    from torch.distributed.fsdp import FSDPModule  # slow to import

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


class Group(NamedTuple):
    """Targets of one device and dtype, and their sources, also of one device and dtype."""

    targets: list[Tensor]
    sources: list[Tensor]
    alike: bool  # whether targets and sources have the same device and dtype


def grouped(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> list[Group]:
    """Group pairs by device and dtype for ``average_``."""
    groups: dict[Any, Group] = {}
    for target, source in zip(targets, sources, strict=True):
        kind = target.device, target.dtype, source.device, source.dtype
        if kind not in groups:
            groups[kind] = Group([], [], kind[:2] == kind[2:])
        groups[kind].targets.append(_local(target))
        groups[kind].sources.append(_local(source))
    return list(groups.values())


def average_(groups: Iterable[Group], momentum: float) -> None:
    """Compute ``target ← momentum · target + (1 - momentum) · source`` for all tensors in a few calls.

    Sources are converted to the device and dtype of their targets. Momentum 0 copies.
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
    """Cut a list of tensors into short ones, to limit the memory of temporary copies."""
    for start in range(0, count, 16):
        yield slice(start, start + 16)


def mean_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Average each tensor over the ranks by one all-reduce; in float64, so that equal values do not change."""
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
    """Gather a sharded tensor; return any other tensor itself."""
    full_tensor = getattr(tensor, "full_tensor", None)
    return tensor if full_tensor is None else full_tensor()


def rename_keys(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the entries of a checkpoint to this module's names, whatever wrappers either had."""
    own = {canonical(name): prefix + name for name in module.state_dict()}
    for key in [key for key in state_dict if key.startswith(prefix)]:
        plain = canonical(key.removeprefix(prefix))
        while plain.startswith("module."):  # networks may have a child of this name, teachers do not
            plain = plain.removeprefix("module.")
        name = own.get(plain, key)
        if name not in state_dict:
            state_dict[name] = state_dict.pop(key)


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a sharded tensor; any other tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()
