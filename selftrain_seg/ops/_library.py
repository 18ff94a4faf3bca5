"""Register operators with all their implementations."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from selftrain_seg import _checks

_library: Any = torch.library.Library("selftrain_seg", "FRAGMENT")  # type: ignore[no-untyped-call]


def operator(
    schema: str,
    plain: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    cpu: Callable[..., Any] | None = None,
    kernel: str = "",
    reads_host: bool = False,
) -> Callable[..., Any]:
    """Register an operator and return it; PyTorch's dispatcher chooses among its implementations.

    Args:
        schema: name, arguments and results, as in ``torch.library.define``.
        plain: implementation in torch for any device. Inputs have no gradient, and it must not synchronise.
        fake: returns tensors of the right shape, dtype and layout without values.
        cpu: faster implementation for the CPU, which may read values on the host; bit-identical results.
        kernel: name of the file in ``ops.triton`` that has a function of this name; empty if there is no kernel.
        reads_host: whether the host code reads numbers from a tensor, so that CUDA graphs of the compiler exclude it.
    """
    name = schema.partition("(")[0]
    tags = [tag for tag in [getattr(torch.Tag, "cudagraph_unsafe", None)] if reads_host and tag is not None]
    _library.define(schema, tags=tags)
    _library.impl(name, plain, "CompositeExplicitAutograd")
    torch.library.register_fake(f"selftrain_seg::{name}", fake, lib=_library)
    keys = _kernel_keys() if kernel else []
    if cpu is not None and "CPU" not in keys:
        _library.impl(name, cpu, "CPU")
    for key in keys:
        _library.impl(name, _kernel(name, plain, kernel), key)
    found: Callable[..., Any] = getattr(torch.ops.selftrain_seg, name).default
    return found


def differentiable(
    name: str, save: Callable[..., None], backward: Callable[..., Tensor], plain: Callable[..., Tensor] | None = None
) -> None:
    """Make the first output of an operator differentiable in the first input (``torch.library.register_autograd``).

    It does not work under the transforms of ``in_transform``.

    Args:
        name: of the operator.
        save: stores tensors and settings in the context, given the context, the inputs and the outputs. The first saved
            tensor is the first input.
        backward: computes the gradient, given the context, that of the output and the saved tensors.
        plain: recomputes the output from the context and the saved tensors in differentiable operations, for double
            backward; None if ``backward`` is differentiable.
    """

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)  # saves writing maps of zeros for the other outputs
        ctx.mark_non_differentiable(*output[1:])
        save(ctx, inputs, output)

    def differentiate(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        none = (None,) * (len(ctx.needs_input_grad) - 1)
        if grad is None:
            return None, *none
        saved = ctx.saved_tensors
        if plain is None or not torch.is_grad_enabled():
            return backward(ctx, grad, *saved), *none
        return torch.autograd.grad(plain(ctx, *saved), saved[0], grad, create_graph=True)[0], *none

    torch.library.register_autograd(f"selftrain_seg::{name}", differentiate, setup_context=setup, lib=_library)


def on_host(*numbers: float) -> Tensor:
    """Numbers as a float64 tensor on the CPU, for operators whose host code reads them."""
    if not torch.compiler.is_compiling():
        return torch.tensor(numbers, dtype=torch.float64, device="cpu")
    return torch.stack([_checks.on_host(number) for number in numbers])


def in_transform() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation is active.

    These do not support custom operators: some fail, some silently drop derivatives. Use plain torch under them.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _kernel(name: str, plain: Callable[..., Any], file: str) -> Callable[..., Any]:
    """The Triton implementation, imported at the first call; unsupported inputs use the plain one."""

    def run(*args: Any) -> Any:
        launch = importlib.import_module(f"selftrain_seg.ops.triton.{file}")
        return getattr(launch, name)(plain, *args)

    return run


def _kernel_keys() -> list[str]:
    """Dispatch keys that use Triton: CUDA, and the CPU if Triton's slow interpreter is enabled (for tests)."""
    switch = os.environ.get("SELFTRAIN_SEG_KERNELS", "")
    if switch == "0" or importlib.util.find_spec("triton") is None:
        return []
    return ["CUDA", "CPU"] if switch == "1" and os.environ.get("TRITON_INTERPRET") == "1" else ["CUDA"]
