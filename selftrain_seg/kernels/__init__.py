"""One-pass Triton kernels behind the plain functions, chosen automatically for logits on a CUDA device.

Each reads the logits once and writes only what its function returns. They are tested in Triton's interpreter, on the
CPU, and compiled for NVIDIA GPUs, but have not been measured on one yet. So a kernel is checked on your device when it
is first used there, on small batches of common layouts: should it fail, a warning says so and the plain path is used.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

from selftrain_seg.kernels import _self_check

__all__ = ["chosen", "enable"]

_MAX_CLASSES = 256
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_enabled = {"0": False, "1": True}.get(os.environ.get("SELFTRAIN_SEG_KERNELS", ""))  # None: on CUDA devices only


def enable(enabled: bool = True) -> None:
    """Switch the kernels off for good, or on, for all functions of this library.

    Without a call they are on for CUDA devices. The environment variable ``SELFTRAIN_SEG_KERNELS``, 0 or 1, does the
    same from the start. The switch is process-wide, not per thread.

    Args:
        enabled: whether the kernels may be used from here on, see ``chosen``.

    Example:
        >>> import torch
        >>> from selftrain_seg import kernels
        >>> kernels.enable(False)
        >>> kernels.chosen(torch.zeros(1, 19, 4, 4))
        False
        >>> kernels.enable()
    """
    global _enabled
    _enabled = enabled


def chosen(logits: Tensor, kernel: str | None = None) -> bool:
    """Tell whether functions with a kernel use it for these logits; else they take the plain path.

    They do when kernels are not switched off, Triton is installed, the logits are a plain tensor of float32,
    float16 or bfloat16 on a CUDA device with at most 256 classes, any strides, and nothing is being traced by
    ``torch.compile``. With ``TRITON_INTERPRET=1`` in the environment and kernels switched on explicitly, logits on the
    CPU count too, very slowly, for tests.

    Args:
        logits: (B, C, H, W), floating point.
        kernel: which one, by its name in ``kernels.launch``; "losses" for the two of the losses. It is checked here
            if it was not yet for this device, dtype and C, which takes seconds, not while a CUDA graph is captured.
            None leaves out the check.

    Returns:
        True or False; False for all kernels once one has failed its check.

    Example:
        >>> import torch
        >>> chosen(torch.zeros(1, 19, 4, 4, device="meta"))
        False
    """
    return (
        _enabled is not False
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and not torch._C._len_torch_dispatch_stack()  # make_fx and other modes, which would not see a kernel
        and type(logits) is Tensor  # no subclass that does more, or holds less, than its memory
        and (logits.is_cuda or (_enabled is True and _interpreted(logits)))
        and logits.dtype in _DTYPES
        and logits.shape[1] <= _MAX_CLASSES
        and not torch._C._functorch.is_functorch_wrapped_tensor(logits)
        and _installed()
        and (kernel is None or not logits.is_cuda or _self_check.passed(kernel, logits))
    )


def _interpreted(logits: Tensor) -> bool:
    return logits.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _installed() -> bool:
    try:
        return importlib.util.find_spec("triton") is not None
    except ValueError:  # a stand-in of that name
        return False
