"""Find small classes by the class counts of a whole data set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.ops.numbers import near

__all__ = ["classes_below", "rare_classes"]


def rare_classes(class_counts: Tensor, *, k: int = 3) -> Tensor:
    """Return the ``k`` classes with the fewest pixels among those that occur.

    These are the classes with the smallest shares ``f_c = n_c / Σ n`` (``rare`` in CRST). Differs from CRST, which
    also returns classes that never occur: on SYNTHIA, which has 16 of 19 classes, it would mine the three that no
    image shows.

    The size of the result depends on the counts, so on a GPU the host waits for the device: call it once per round,
    not in every step.

    Args:
        class_counts: (C,), integer or floating point, at least 0: pixels per class over the data set, such as
            ``ClassBalancedThreshold.class_counts()``.
        k: how many classes, 1 to C; 3 in CBST and CRST.

    Returns:
        (K,) int64 on the device of ``class_counts``, rarest first, ties in class order; K is ``k``, or less if
        fewer classes occur.

    Raises:
        TypeError: ``class_counts`` is not a real-valued tensor, ``k`` is not an int.
        ValueError: ``class_counts`` is not (C,) with C of at least 1, or has a value that is negative or not finite;
            ``k`` is not in [1, C].

    References:
        Zou et al., Confidence Regularized Self-Training, ICCV 2019, arXiv:1908.09822.

    Example:
        >>> import torch
        >>> from selftrain_seg.mining import rare_classes
        >>> rare_classes(torch.tensor([500, 20, 0, 20, 900]), k=3)
        tensor([1, 3, 0])
    """
    _check_counts(class_counts)
    _checks.check_count(k, "k")
    if k > class_counts.shape[0]:
        raise ValueError(f"`k`: expected at most the {class_counts.shape[0]} classes, got {k}")
    counts, order = class_counts.sort(stable=True)
    return order[counts > 0][:k]


def classes_below(class_counts: Tensor, *, share: float = 1e-3) -> Tensor:
    """Return the classes that occur and cover less than ``share`` of all pixels.

    Returns every c with ``0 < n_c / Σ n < share`` (``mine`` in CRST, without the classes that no image shows). The
    size of the result depends on the counts, so on a GPU the host waits for the device: call it once per round, not
    in every step.

    Args:
        class_counts: (C,), integer or floating point, at least 0: pixels per class over the data set, such as
            ``ClassBalancedThreshold.class_counts()``.
        share: exclusive upper bound on the share, in [0, 1]; 1e-3 in CBST and CRST.

    Returns:
        (K,) int64 on the device of ``class_counts``, rarest first, ties in class order; K is 0 if no class
        is that small.

    Raises:
        TypeError: ``class_counts`` is not a real-valued tensor, ``share`` is not a number.
        ValueError: ``class_counts`` is not (C,) with C of at least 1, or has a value that is negative or not finite;
            ``share`` is outside [0, 1].

    References:
        Zou et al., Confidence Regularized Self-Training, ICCV 2019, arXiv:1908.09822.

    Example:
        >>> import torch
        >>> from selftrain_seg.mining import classes_below
        >>> classes_below(torch.tensor([5000, 4, 0, 3, 4993]), share=1e-3)
        tensor([3, 1])
    """
    _check_counts(class_counts)
    _checks.check_real(share, "share", 0.0, 1.0)
    counts, order = class_counts.double().sort(stable=True)
    total = counts.sum()
    return order[(counts > 0) & (counts / total < share)]


def _check_counts(class_counts: Tensor) -> None:
    _checks.check_tensor(class_counts, "class_counts")
    if class_counts.is_complex() or class_counts.dtype == torch.bool:
        raise TypeError(f"`class_counts`: expected counts, got {class_counts.dtype}")
    if class_counts.ndim != 1 or class_counts.shape[0] == 0:
        raise ValueError(f"`class_counts`: expected (C,) with at least one class, got {tuple(class_counts.shape)}")
    wrong = ~((class_counts >= 0) & (class_counts < torch.inf))
    if bool(wrong.any()):
        raise ValueError(f"`class_counts`: expected finite values of at least 0, got {float(class_counts[wrong][0])}")


def class_numbers(classes: Any, like: Tensor, name: str) -> Tensor:
    """Check numbers of classes (K,); returns them as int64, on the device of another tensor."""
    _checks.check_integer(classes, name)
    if classes.ndim != 1:
        raise ValueError(f"`{name}`: expected (K,), got {tuple(classes.shape)}")
    return near(classes, like).long()
