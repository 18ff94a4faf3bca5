"""Uniform random integers, and a check of the generator's device."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform_integers(batch: int, count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """(B, count) uniform integers below 2**62; modulo n they are uniform up to n / 2**62."""
    if generator is None:  # `generator=None` does not compile for dynamic shapes
        return torch.randint(2**62, (batch, count), device=device)
    return torch.randint(2**62, (batch, count), generator=generator, device=device)


def check_generator(generator: torch.Generator | None, like: Tensor) -> None:
    """Raise ValueError if the generator is on another device than ``like``."""
    if generator is not None and generator.device.type != like.device.type:
        raise ValueError(f"`generator`: expected device {like.device}, got {generator.device}")
