"""Logits of every awkward kind, shared by the tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def random_logits(batch: int = 2, classes: int = 5, height: int = 7, width: int = 9, scale: float = 3.0, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, classes, height, width, generator=generator)


def layouts(tensor: Tensor) -> dict[str, Tensor]:
    """The same values in different memory layouts."""
    wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1], dtype=tensor.dtype)
    wide[..., ::2] = tensor
    return {
        "contiguous": tensor.contiguous(),
        "channels_last": tensor.contiguous(memory_format=torch.channels_last),
        "strided": wide[..., ::2],
        "transposed": tensor.transpose(2, 3).contiguous().transpose(2, 3),
    }


def saturated_logits(height: int = 256, width: int = 512, seed: int = 0) -> Tensor:
    """19 classes; in six of them more than half of the pixels have a float32 probability of exactly 1."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 19, (2, height, width), generator=generator)
    noise = torch.randn(2, height, width, generator=generator)
    margin = torch.where(labels < 6, 29 + 5 * noise, 3 * noise.abs() + 1)
    logits = 2 * torch.randn(2, 19, height, width, generator=generator)
    return logits.scatter_add_(1, labels.unsqueeze(1), margin.unsqueeze(1))


@contextmanager
def never_waits() -> Iterator[None]:
    """Within, it is an error if the host waits for the GPU, as far as PyTorch notices; afterwards all is as before."""
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
