"""Counts what a function would launch on a GPU, and refuses what would make the host wait for one; no GPU is needed.

The GPU is PyTorch's "meta" device: its tensors have a shape and a dtype, and no values. So nothing can be read from
them, and every operation that would be sent to the GPU passes by and is counted:

    logits = torch.randn(2, 19, 64, 128, device=GPU)
    assert launched(select_hard, logits, 0.9) == ["hard_kernel"]

An operation counts 1. Views, and memory that is only reserved, count nothing; operations on lists of tensors count as
often as PyTorch cuts the lists; a Triton kernel counts 1 whenever it is started. The operators of this package are
followed into the implementation that CUDA gets. PyTorch uses several kernels for some operations, such as sorting, so
a profile of a GPU may show a few more.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = "meta"

_RESERVE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_"}
_SAME_MEMORY = {"_unsafe_view", "lift_fresh", "lift", "_reshape_alias", "record_stream", "detach_"}
_READ = {"_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select", "unique", "_unique2"}
_READ |= {"unique_dim", "unique_consecutive", "bincount", "repeat_interleave", "nonzero_numpy", "argwhere", "histc"}
# Operations that fill, then copy.
_TWO = {"constant_pad_nd", "eye"}
# Tensors of a launch for operations on 1, 2, … lists of tensors, and blocks of a launch of so many elements each.
_LISTED = (110, 110, 64, 48, 36, 30)
_BLOCKS, _ELEMENTS = 320, 65536


class HostWaits(AssertionError):
    """The host would wait for the GPU, or could not be part of a CUDA graph."""


def launched(function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[str]:
    """What a call launches, by name, its backward pass too if it gives a scalar that has one.

    Raises:
        HostWaits: the host would wait for the GPU.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("interpreted kernels are not launched")
    names: list[str] = []

    def note(kernel, *_, **__):
        names.append(kernel.fn.__name__)

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError):
            from triton.runtime.jit import JITFunction

            stack.enter_context(mock.patch.object(JITFunction, "run", note))
        for switch in ("torch.cuda.device", "torch.autocast"):  # which this device does not have
            stack.enter_context(mock.patch(switch, _nothing))
        stack.enter_context(_Counter(names))
        result = function(*args, **kwargs)
        if isinstance(result, Tensor) and result.requires_grad and result.ndim == 0:
            result.backward()
    return names


def _nothing(*_: Any, **__: Any) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


class _Counter(TorchDispatchMode):
    def __init__(self, launches: list[str]) -> None:
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if func.namespace == "selftrain_seg":
            has_own = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CUDA")
            key = torch._C.DispatchKey.CUDA if has_own else torch._C.DispatchKey.CompositeExplicitAutograd
            with self:
                return func._op_dk(key, *args, **kwargs)
        refuse_waits(func, args, kwargs)
        result = func(*args, **kwargs)
        given, made = tensors_in((args, kwargs)), tensors_in(result)
        if any(tensor.device.type == GPU for tensor in (*given, *made)):
            self.launches += [name] * _cost(func, name, args, made)
        return result


def tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def refuse_waits(func, args, kwargs, gpu=GPU):
    """Raise HostWaits if an operation of the dispatcher makes the host wait for the device type ``gpu``."""
    name, given = func._schema.name.partition("::")[2], tensors_in((args, kwargs))
    homes = {tensor.device.type for tensor in given}
    target = torch.device(kwargs["device"]).type if kwargs.get("device") else None
    if target and given and {target} != homes and gpu in homes | {target}:
        raise HostWaits(f"{func}: from {homes} to {target}")
    if gpu not in homes:
        return
    if name in _READ:
        raise HostWaits(f"{func}: its result is known to the GPU alone")
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        if any(place is not None and place.dtype in (torch.bool, torch.uint8) for place in args[1]):
            raise HostWaits(f"{func}: a boolean index is looked at by the host")
        if len(args) > 2 and args[2].ndim == 0:  # `x[index] = number`: on CUDA a tensor of the CPU, which is then sent
            raise HostWaits(f"{func}: a number is sent to the GPU by a copy")
    # Numbers in tensors of the CPU are handed over with a launch, but not by a copy.
    if any(tensor.device.type == "cpu" and (tensor.ndim or "copy" in name) for tensor in given):
        raise HostWaits(f"{func}: between CPU and GPU")


def _cost(func, name, args, made):
    if name in _RESERVE or name in _SAME_MEMORY or func.is_view:
        return 0
    if name.startswith("_foreach_"):
        return _of_lists(args, made)
    return 2 if name in _TWO else 1


def _of_lists(args, made):
    """Launches of an operation on lists of tensors: as many as its arguments have room for, and blocks."""
    lists = [list(arg) for arg in args if isinstance(arg, (list, tuple)) and arg and isinstance(arg[0], Tensor)]
    depth = len(lists) + bool(made)
    launches = tensors = blocks = 0
    for tensor in lists[0]:
        tensors += 1
        for _ in range(-(-tensor.numel() // _ELEMENTS)):
            blocks += 1
            if blocks == _BLOCKS:
                launches, blocks = launches + 1, 0
                tensors = 1
        if tensors == _LISTED[depth]:
            launches, tensors, blocks = launches + 1, 0, 0
    return launches + bool(blocks)
