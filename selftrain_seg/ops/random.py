"""Random numbers on the device of the data."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform_integers(batch: int, count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """(B, count) uniform integers below 2**62: modulo n they are uniform to n / 2**62, without rounding."""
    if generator is None:  # said apart: with the argument, even None, it does not compile for dynamic shapes
        return torch.randint(2**62, (batch, count), device=device)
    return torch.randint(2**62, (batch, count), generator=generator, device=device)
