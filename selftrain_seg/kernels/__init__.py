"""One-pass Triton kernels behind the plain functions, for logits on a CUDA device. Off unless switched on.

Each reads the logits once and writes only what its function returns. They have been tested in Triton's interpreter, on
the CPU, and compiled for NVIDIA GPUs, but have never run on one: hence the switch.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

__all__ = ["chosen", "enable"]

_MAX_CLASSES = 256
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_enabled = os.environ.get("SELFTRAIN_SEG_KERNELS") == "1"


def enable(enabled: bool = True) -> None:
    """Let the functions of this library use the kernels where they can, see ``chosen``.

    Off by default, or on from the start with the environment variable ``SELFTRAIN_SEG_KERNELS=1``. The switch is
    process-wide, not per thread.

    Args:
        enabled: whether the kernels may be used from here on.

    Example:
        >>> import torch
        >>> from selftrain_seg import kernels
        >>> kernels.enable()
        >>> kernels.chosen(torch.zeros(1, 19, 4, 4))  # not on a CUDA device
        False
        >>> kernels.enable(False)
    """
    global _enabled
    _enabled = enabled


def chosen(logits: Tensor) -> bool:
    """Tell whether functions with a kernel use it for these logits; else they take the plain path.

    They do when kernels are enabled, Triton is installed, the logits are a plain tensor of float32,
    float16 or bfloat16 on a CUDA device with at most 256 classes, any strides, and nothing is being traced by
    ``torch.compile``. With ``TRITON_INTERPRET=1`` in the environment logits on the CPU count too, very slowly, for
    tests.

    Args:
        logits: (B, C, H, W), floating point.

    Returns:
        True or False.

    Example:
        >>> import torch
        >>> chosen(torch.zeros(1, 19, 4, 4, device="meta"))
        False
    """
    return (
        _enabled
        and not torch.compiler.is_compiling()
        and type(logits) is Tensor  # no subclass that does more, or holds less, than its memory
        and (logits.is_cuda or (logits.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"))
        and logits.dtype in _DTYPES
        and logits.shape[1] <= _MAX_CLASSES
        and _installed()
    )


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None
