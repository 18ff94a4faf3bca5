"""Checks of modules whose ``forward`` is replaced inside a ``with`` block."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def check_replaceable(modules: Sequence[object], argument: str, noun: str, replaced: str) -> None:
    """Require different modules whose ``forward`` is that of their class, not replaced or compiled."""
    for index, module in enumerate(modules):
        name = f"`{argument}[{index}]`"
        if not isinstance(module, nn.Module):
            raise TypeError(f"{name}: expected a torch.nn.Module, got {type(module).__name__}")
        if "forward" in vars(module):
            raise ValueError(f"{name}: expected a {noun} that is neither compiled nor {replaced} already")
        if any(module is other for other in modules[:index]):
            raise ValueError(f"{name}: expected each {noun} once")
