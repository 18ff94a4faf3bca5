"""Validators of arguments, called once at the start of every public function.

They check types, shapes, dtypes and devices, which does not synchronise with a GPU. Checks of tensor values do, so they
run only inside ``value_checks()``.
"""

from __future__ import annotations

import numbers
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from selftrain_seg.types import IGNORE_INDEX

__all__ = ["value_checks"]

_value_checks = 0  # number of open `value_checks` blocks, over all threads
_lock = threading.Lock()


@contextmanager
def value_checks(enabled: bool = True) -> Iterator[None]:
    """Enable the checks of tensor values inside a ``with`` block.

    Out-of-range labels then raise a ``ValueError`` that names the argument and the value. Each check makes the host
    wait for the device, so use it for debugging only. The checks run in all threads while any thread is inside such a
    block.

    Args:
        enabled: if False, the block does nothing.

    Example:
        >>> import torch, selftrain_seg
        >>> from selftrain_seg.losses import mrkld_loss
        >>> with selftrain_seg.value_checks():
        ...     mrkld_loss(torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), 7))
        Traceback (most recent call last):
        ValueError: `labels`: expected values in [0, 3) or ignore_index 255, got 7
    """
    _count_blocks(int(enabled))
    try:
        yield
    finally:
        _count_blocks(-int(enabled))


def _count_blocks(change: int) -> None:
    global _value_checks
    with _lock:
        _value_checks += change


def check_tensor(value: Any, name: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}`: expected a torch.Tensor, got {type(value).__name__}")


def check_images(images: Any, name: str = "images") -> None:
    """(B, C, H, W), floating point, any number of channels."""
    check_tensor(images, name)
    if images.ndim != 4:
        raise ValueError(f"`{name}`: expected (B, C, H, W), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise TypeError(f"`{name}`: expected a floating-point dtype, got {images.dtype}")


def check_logits(logits: Any, num_classes: int | None = None, name: str = "logits") -> None:
    """(B, C, H, W), floating point, C at least 2 and equal to ``num_classes`` if given."""
    check_images(logits, name)
    if logits.shape[1] < 2:  # the softmax of one channel is 1 everywhere
        sigmoid = "; `selftrain_seg.as_logits(output, binary=True)` turns one sigmoid channel into two classes"
        raise ValueError(
            f"`{name}`: expected at least two classes on dimension 1, got {logits.shape[1]} in {tuple(logits.shape)}"
            f"{sigmoid if logits.shape[1] == 1 else ''}"
        )
    if num_classes is not None and logits.shape[1] != num_classes:
        raise ValueError(
            f"`{name}`: expected {num_classes} classes on dimension 1, got {logits.shape[1]} in {tuple(logits.shape)}"
        )


def check_map(value: Any, like: Tensor, name: str) -> None:
    """(B, H, W) on the device of ``like`` (B, C, H, W)."""
    check_tensor(value, name)
    expected = (like.shape[0], *like.shape[-2:])
    if tuple(value.shape) != expected:
        raise ValueError(f"`{name}`: expected (B, H, W) = {expected}, got {tuple(value.shape)}")
    check_device(value, like, name)


def check_valid(valid: Any, logits: Tensor) -> None:
    """None, or (B, H, W) bool: the valid pixels."""
    if valid is None:
        return
    check_map(valid, logits, "valid")
    if valid.dtype != torch.bool:
        raise TypeError(f"`valid`: expected dtype torch.bool, got {valid.dtype}")


def check_device(value: Tensor, like: Tensor, name: str) -> None:
    if value.device != like.device:
        raise ValueError(f"`{name}`: expected device {like.device}, got {value.device}")


def check_scalar(value: Any, name: str) -> None:
    """() floating point."""
    check_tensor(value, name)
    if value.ndim or not value.is_floating_point():
        raise ValueError(f"`{name}`: expected a floating-point tensor (), got {value.dtype} {tuple(value.shape)}")


def check_integer(value: Any, name: str) -> None:
    check_tensor(value, name)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"`{name}`: expected an integer dtype, got {value.dtype}")


def check_label_maps(labels: Any, name: str = "labels") -> None:
    """(B, H, W) integer labels, without logits to compare with."""
    check_integer(labels, name)
    if labels.ndim != 3:
        raise ValueError(f"`{name}`: expected (B, H, W), got {tuple(labels.shape)}")


def check_labels(labels: Any, logits: Tensor, ignore_index: int, name: str = "labels") -> None:
    """(B, H, W) integer labels that match ``logits``; inside ``value_checks()`` also their values."""
    check_integer(labels, name)
    if labels.ndim == 3 and labels.shape[0] == logits.shape[0] and labels.shape[1:] != logits.shape[2:]:
        raise ValueError(
            f"`{name}`: expected (B, H, W) = {(logits.shape[0], *logits.shape[2:])}, got {tuple(labels.shape)}; "
            f"`selftrain_seg.as_logits(output, size={name})` resizes the logits to the labels"
        )
    check_map(labels, logits, name)
    check_label_values(labels, logits.shape[1], ignore_index, name)


def check_label_values(labels: Tensor, num_classes: int, ignore_index: int, name: str = "labels") -> None:
    """Every label in [0, num_classes) or equal to ``ignore_index``; only inside ``value_checks()``."""
    if not _value_checks:
        return
    labels = labels.long()  # in uint8, 300 classes would be 44
    wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= num_classes))]
    if wrong.numel():
        raise ValueError(
            f"`{name}`: expected values in [0, {num_classes}) or ignore_index {ignore_index}, got {int(wrong[0])}"
        )


def check_image_values(value: Any, logits: Tensor, name: str) -> None:
    """One value per image: (B,), on the device of ``logits``."""
    check_tensor(value, name)
    if tuple(value.shape) != (logits.shape[0],):
        raise ValueError(f"`{name}`: expected (B,) = ({logits.shape[0]},), got {tuple(value.shape)}")
    check_device(value, logits, name)


def check_image_flags(value: Any, logits: Tensor, name: str) -> None:
    """One flag per image: (B,) bool."""
    check_image_values(value, logits, name)
    if value.dtype != torch.bool:
        raise TypeError(f"`{name}`: expected dtype torch.bool, got {value.dtype}")


def check_class_values(value: Any, logits: Tensor, name: str) -> None:
    """One value per class: (C,), on the device of ``logits``."""
    check_tensor(value, name)
    if tuple(value.shape) != (logits.shape[1],):
        raise ValueError(f"`{name}`: expected (C,) = ({logits.shape[1]},), got {tuple(value.shape)}")
    check_device(value, logits, name)


def check_vector(value: Any, name: str) -> None:
    """(C,) floating point."""
    check_tensor(value, name)
    if not value.is_floating_point():
        raise TypeError(f"`{name}`: expected a floating-point dtype, got {value.dtype}")
    if value.ndim != 1:
        raise ValueError(f"`{name}`: expected (C,), got {tuple(value.shape)}")


def check_class_maps(value: Any, logits: Tensor, name: str) -> None:
    """Soft labels or probabilities, shaped like ``logits``; inside ``value_checks()`` not negative and not NaN."""
    check_logits(value, name=name)
    if value.shape != logits.shape:
        raise ValueError(f"`{name}`: expected (B, C, H, W) = {tuple(logits.shape)}, got {tuple(value.shape)}")
    check_device(value, logits, name)
    if _value_checks and not bool((value >= 0).all()):
        raise ValueError(f"`{name}`: expected values of at least 0, got {float(value[~(value >= 0)][0])}")


def thresholds_for(thresholds: Any, logits: Tensor) -> Tensor:
    """Return (C,) floating-point thresholds on any device, or () on the host for a number in [0, 1]."""
    if not isinstance(thresholds, Tensor):
        check_real(thresholds, "thresholds", 0.0, 1.0)
        return on_host(thresholds)
    if tuple(thresholds.shape) != (logits.shape[1],):
        raise ValueError(f"`thresholds`: expected (C,) = ({logits.shape[1]},), got {tuple(thresholds.shape)}")
    if not thresholds.is_floating_point():
        raise TypeError(f"`thresholds`: expected a floating-point dtype, got {thresholds.dtype}")
    return thresholds


def on_host(number: float) -> Tensor:
    """Return a () float64 tensor on the CPU. With `full`, torch.compile would recompile for every value."""
    return torch.ones((), dtype=torch.float64, device="cpu").mul(float(number))


def check_prior(prior: Any, logits: Tensor) -> None:
    """None, or (C, H, W), floating point, on the device of ``logits``."""
    if prior is None:
        return
    check_tensor(prior, "prior")
    if tuple(prior.shape) != tuple(logits.shape[1:]):
        raise ValueError(f"`prior`: expected (C, H, W) = {tuple(logits.shape[1:])}, got {tuple(prior.shape)}")
    if not prior.is_floating_point():
        raise TypeError(f"`prior`: expected a floating-point dtype, got {prior.dtype}")
    check_device(prior, logits, "prior")


def check_real(value: Any, name: str, low: float, high: float, *, open_low: bool = False) -> None:
    """A Python number in [low, high], or (low, high] with ``open_low``; NaN is never inside."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}`: expected a number, got {type(value).__name__}")
    number = float(value)
    inside = (low < number if open_low else low <= number) and number <= high
    if not inside:
        raise ValueError(f"`{name}`: expected a value in {'(' if open_low else '['}{low}, {high}], got {value}")


def check_count(value: Any, name: str, minimum: int = 1) -> None:
    """A Python int of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}`: expected an int, got {type(value).__name__}")
    if int(value) < minimum:
        raise ValueError(f"`{name}`: expected at least {minimum}, got {value}")


def check_ignore_index(value: Any, num_classes: int, *, minimum: int = -(2**63)) -> int:
    """Return a Python int that is not a class."""
    check_count(value, "ignore_index", minimum=minimum)
    if 0 <= int(value) < num_classes:
        raise ValueError(
            f"`ignore_index`: expected a value outside the classes [0, {num_classes}), got {value}; with more "
            "than 255 classes, use -1"
        )
    return int(value)


def check_choice(value: Any, name: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}`: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def check_size(size: Any, name: str = "size") -> tuple[int, int]:
    """Return (height, width) as Python ints of at least 1."""
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f"`{name}`: expected (height, width), got {size!r}")
    for place, side in enumerate(size):
        check_count(side, f"{name}[{place}]")
    return int(size[0]), int(size[1])


def fill_value(tensor: Tensor, fill: Any, name: str = "fill") -> float:
    """Return ``fill`` if the dtype can hold it. None is 255 for integer (B, H, W) or (B, 1, H, W), otherwise 0."""
    exact = not (tensor.is_floating_point() or tensor.is_complex())
    low, high = 0, 1
    if exact and tensor.dtype != torch.bool:
        info = torch.iinfo(tensor.dtype)
        low, high = info.min, info.max
    if fill is None:
        maps = tensor.ndim == 3 or (tensor.ndim == 4 and tensor.shape[1] == 1)
        fill = IGNORE_INDEX if exact and maps and tensor.dtype != torch.bool else 0
    check_real(fill, name, -torch.inf, torch.inf)
    if not exact:
        return float(fill)
    if not low <= fill <= high or int(fill) != fill:
        raise ValueError(f"`{name}`: expected a value that {tensor.dtype} can hold, got {fill}")
    return int(fill)


def some_names(names: Iterable[str]) -> str:
    """The first five names in alphabetical order and how many more there are, for an error."""
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "") or "none"
