"""Checks of the arguments that the losses have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from selftrain_seg import _checks

REDUCTIONS = ("none", "mean", "sum")
NORMALIZE = ("labelled", "all")


def check_target(logits: Any, labels: Any, ignore_index: int, pixel_weight: Any = None, *, soft: bool = True) -> None:
    """Check logits, hard or (if allowed) soft labels, and pixel weights."""
    _checks.check_logits(logits)
    if not (soft and isinstance(labels, Tensor) and labels.is_floating_point()):
        _checks.check_ignore_index(ignore_index, logits.shape[1])
        _checks.check_labels(labels, logits, ignore_index)
    elif labels.ndim == 3:
        expected = "an integer dtype, or soft labels (B, C, H, W)"
        raise TypeError(f"`labels`: expected {expected}, got {tuple(labels.shape)} of {labels.dtype}")
    else:
        _checks.check_class_maps(labels, logits, "labels")
    if pixel_weight is not None:
        _checks.check_map(pixel_weight, logits, "pixel_weight")


def divide_by(normalize: Any, reduction: Any, choices: tuple[str, ...] = NORMALIZE) -> str:
    """Combine ``normalize`` and ``reduction`` into one word for the divisor."""
    _checks.check_choice(normalize, "normalize", choices)
    _checks.check_choice(reduction, "reduction", REDUCTIONS)
    return str(normalize) if reduction == "mean" else str(reduction)
