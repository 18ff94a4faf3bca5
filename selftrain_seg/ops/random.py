"""Random numbers: exact uniform integers, and the check that a generator draws where they are wanted."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform_integers(batch: int, count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """(B, count) uniform integers below 2**62: modulo n they are uniform to n / 2**62, without rounding."""
    if generator is None:  # said apart: with the argument, even None, it does not compile for dynamic shapes
        return torch.randint(2**62, (batch, count), device=device)
    return torch.randint(2**62, (batch, count), generator=generator, device=device)


def check_generator(generator: torch.Generator | None, like: Tensor) -> None:
    """Raise ValueError unless the generator, if there is one, draws on the device of ``like``."""
    if generator is not None and generator.device.type != like.device.type:
        raise ValueError(f"`generator`: expected device {like.device}, got {generator.device}")
