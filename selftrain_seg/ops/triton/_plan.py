"""Cut a batch into programs, and launch a kernel on them."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import torch
from torch import Tensor

PIXELS = 256  # per program
_UNROLLED, _CHUNK = 64, 8  # up to 64 classes are one chunk; more are processed in chunks of 8
GROUP_SIZE = 32  # pixels whose counts are added up before they are written
_LANES = 4  # threads that share a pixel whose classes are adjacent in memory


class Plan(NamedTuple):
    """Division of a batch into programs, and the layout of its tensors."""

    programs: int
    pixels: int  # per program, all of one row
    lanes: int  # threads that share a pixel
    layout: tuple[int, ...]  # height, width, and for each tensor strides of batch, class, height, width


def plan_for(logits: Tensor, *strided: Tensor, pixels: int = PIXELS, share: bool = True, wide: bool = False) -> Plan:
    """Cut a batch.

    Args:
        logits: (B, C, H, W).
        strided: other tensors (B, C, H, W) that the kernel reads or writes.
        pixels: number of pixels per program.
        share: whether lanes may share a pixel.
        wide: whether a program may take twice the pixels if they have half the bytes.
    """
    batch, num_classes, height, width = logits.shape
    strides = [tensor.stride() for tensor in (logits, *strided)]
    if width == 1:
        height, width, strides = 1, height, [(b, c, 0, h) for b, c, h, _ in strides]
    elif height == 1 or all(h == width * w for _, _, h, w in strides):  # contiguous rows are one long row
        height, width = 1, height * width
    side_by_side = share and strides[0][1] == 1 and strides[0][3] != 1
    lanes = min(_LANES, 1 << (num_classes.bit_length() - 1)) if side_by_side else 1
    if lanes > 1:
        pixels = pixels // lanes
    elif wide and strides[0][3] == 1 and _CHUNK <= num_classes <= _UNROLLED:
        pixels *= 4 // logits.element_size()
    programs = batch * height * -(-width // pixels)
    return Plan(programs, pixels, lanes, (height, width, *(s for each in strides for s in each)))


def run(
    kernel: Any,
    logits: Tensor,
    tensors: tuple[Tensor | None, ...],
    plan: Plan,
    numbers: tuple[float, ...] = (),
    *,
    before: tuple[Tensor, ...] = (),
    **options: Any,
) -> None:
    """Call a kernel with tensors, the logits first unless others come before, then the layout, then numbers."""
    if plan.programs == 0:
        return
    num_classes = logits.shape[1]
    chunk = -(-num_classes // plan.lanes) * plan.lanes if num_classes <= _UNROLLED else _CHUNK
    if "LANES" in kernel.arg_names:
        options |= {"LANES": plan.lanes}
    with torch.cuda.device(logits.get_device()):  # -1, the CPU, changes nothing
        kernel[(plan.programs,)](
            *before, logits, *tensors, *plan.layout, *numbers,
            C=num_classes, PIXELS=plan.pixels, CHUNK=chunk, **options, enable_fp_fusion=False,
        )  # fmt: skip


def launch_one(kernel: Any, programs: int, first: Tensor, *rest: Any, **options: Any) -> None:
    """Call a kernel with its arguments as given."""
    if programs:
        with torch.cuda.device(first.get_device()):
            kernel[(programs,)](first, *rest, **options, enable_fp_fusion=False)


def fits(logits: Tensor) -> bool:
    return logits.dtype != torch.float64


def new(logits: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=logits.device)


def new_map(logits: Tensor, dtype: torch.dtype) -> Tensor:
    return new(logits, (logits.shape[0], *logits.shape[2:]), dtype)


def contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def bits(number: float) -> int:
    """The bits of a float64, as Triton passes plain numbers as float32."""
    bits: int = struct.unpack("<q", struct.pack("<d", number))[0]
    return bits


def power_of_2(size: int) -> int:
    """The smallest power of two that is at least ``size``."""
    return 1 << (size - 1).bit_length()
