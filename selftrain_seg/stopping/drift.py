"""Change of the class shares of predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks

__all__ = ["class_drift"]


def class_drift(counts: Tensor, reference: Tensor) -> Tensor:
    """Compute the total variation distance between the class shares of two sets of predictions.

    ``½ Σ_c |n_c / Σn - m_c / Σm|``: 0 if the shares are equal, 1 if the two have no class in common. It is the share of
    pixels that must change class to turn one distribution into the other. Computed before training and after a round,
    it shows whether classes grow or vanish, but not which of the two is right.

    Args:
        counts: (C,) or (..., C) pixels predicted as each class, or shares, for example one row per round.
            ``class_counts()`` of a threshold estimator returns them.
        reference: (C,) or (..., C) counts to compare with: those of the network before training, or of the source
            labels.

    Returns:
        () or (...) float64 in [0, 1]; NaN where an argument has no pixels.

    Raises:
        TypeError: one is not a tensor of numbers.
        ValueError: an argument has no dimension, or the two differ in the number of classes or in device or do not
            broadcast.

    Example:
        >>> import torch
        >>> before = torch.tensor([60, 30, 10])
        >>> class_drift(torch.tensor([[60, 30, 10], [80, 15, 5]]), before)
        tensor([0.0000, 0.2000], dtype=torch.float64)
    """
    for value, name in ((counts, "counts"), (reference, "reference")):
        _checks.check_tensor(value, name)
        if value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"`{name}`: expected counts of an integer or floating-point dtype, got {value.dtype}")
        if value.ndim == 0:
            raise ValueError(f"`{name}`: expected (..., C), got a tensor without dimensions")
    if counts.shape[-1] != reference.shape[-1]:
        raise ValueError(f"`reference`: expected {counts.shape[-1]} classes, got {reference.shape[-1]}")
    _checks.check_device(reference, counts, "reference")
    now, then = counts.detach().double(), reference.detach().double()
    try:
        apart = now / now.sum(-1, keepdim=True) - then / then.sum(-1, keepdim=True)
    except RuntimeError:
        raise ValueError(
            f"`reference`: expected a shape that broadcasts with {tuple(counts.shape)}, got {tuple(reference.shape)}"
        ) from None
    return 0.5 * apart.abs().sum(-1)
