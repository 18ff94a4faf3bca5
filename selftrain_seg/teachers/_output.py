"""Logits out of whatever segmentation networks return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def logits_of(output: Any) -> Tensor:
    """A tensor itself, ``out`` or ``logits`` of a dict, ``.logits`` of an object, the first of a tuple."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        found = output.get("out", output.get("logits"))
    elif hasattr(output, "logits"):
        found = output.logits
    else:
        found = output[0] if isinstance(output, (tuple, list)) and output else None
    if isinstance(found, Tensor):
        return found
    raise TypeError(
        f"`model(images)`: expected logits, `out` or `logits` in a dict or object, or a tuple of tensors, "
        f"got {type(output).__name__}"
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside a ``with`` block; then every module is in the mode it was in."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
