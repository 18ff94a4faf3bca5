"""Uniform random numbers, and a check of the generator's device.

They call torch without `generator=None`, which does not compile for dynamic shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def uniform_integers(batch: int, count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """(B, count) uniform integers below 2**62; modulo n they are uniform up to n / 2**62."""
    if generator is None:
        return torch.randint(2**62, (batch, count), device=device)
    return torch.randint(2**62, (batch, count), generator=generator, device=device)


def uniform(
    shape: Sequence[int], device: torch.device, generator: torch.Generator | None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Uniform numbers in [0, 1)."""
    if generator is None:
        return torch.rand(tuple(shape), dtype=dtype, device=device)
    return torch.rand(tuple(shape), dtype=dtype, generator=generator, device=device)


def check_generator(generator: torch.Generator | None, like: Tensor) -> None:
    """Raise ValueError if the generator is on another device than ``like``."""
    if generator is not None and generator.device.type != like.device.type:
        raise ValueError(f"`generator`: expected device {like.device}, got {generator.device}")
