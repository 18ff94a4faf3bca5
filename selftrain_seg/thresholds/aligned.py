"""Portions that keep class shares near those of the source labels."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.thresholds._portions import check_class_counts, per_class

__all__ = ["aligned_portion"]


def aligned_portion(
    portion: float | Tensor, predicted_counts: Tensor, source_counts: Tensor, *, factor: float = 2.0
) -> Tensor:
    """Cap the share of each class among the pseudo-labels at ``factor`` times its share in the source labels.

    ``ρ'_c = ρ_c · min(1, factor q_c M / a_c)``. ``a_c = ρ_c n_c`` is the number of labels that class c would get, with
    n_c pixels predicted as c. q_c is the share of c in the source labels, among the classes with a_c > 0. M is the
    number of labels that are left, the largest solution of ``M = Σ_c min(a_c, factor q_c M)``. Class c thus gets at
    most ``factor · q_c`` of the labels, and no more labels are dropped than necessary. The cap limits a class that
    grows from round to round by its own mistakes; it does not help a class that is predicted too rarely. A class
    without source labels is never labelled.

    Args:
        portion: ρ, a number in [0, 1], or (C,) with one per class.
        predicted_counts: (C,) pixels predicted as each class on the target, from ``class_counts()`` of an estimator.
        source_counts: (C,) pixels of each class in the source labels, or their shares. Only their ratios matter.
        factor: how many times as frequent a class may be as in the source, in [1, 1e6]. With 1 the shares equal those
            of the source, so a class that is predicted too rarely limits all others.

    Returns:
        (C,) float64 in [0, 1], on the device of ``predicted_counts``; at most ``portion``, and equal to it for classes
        that are not predicted.

    Raises:
        TypeError: counts are not numeric tensors, or ``portion`` or ``factor`` is not a number.
        ValueError: counts are not (C,), shapes differ, or a number is out of range.

    References:
        Inspired by the distribution alignment of ReMixMatch (Berthelot et al., ICLR 2020), which rescales predictions
        rather than portions.

    Example:
        >>> import torch
        >>> predicted, source = torch.tensor([900.0, 80.0, 20.0]), torch.tensor([90.0, 9.0, 1.0])
        >>> portions = aligned_portion(0.5, predicted, source, factor=1.5)  # class 2: at most 1.5 % of the labels
        >>> portions
        tensor([0.5000, 0.5000, 0.3731], dtype=torch.float64)
        >>> labels = portions * predicted
        >>> labels / labels.sum()
        tensor([0.9046, 0.0804, 0.0150], dtype=torch.float64)
    """
    check_class_counts(predicted_counts, "predicted_counts")
    check_class_counts(source_counts, "source_counts")
    if source_counts.shape != predicted_counts.shape:
        raise ValueError(
            f"`source_counts`: expected (C,) = {tuple(predicted_counts.shape)}, got {tuple(source_counts.shape)}"
        )
    _checks.check_real(factor, "factor", 1.0, 1e6)
    whole = per_class(portion, predicted_counts)
    wanted = whole * predicted_counts.detach().double()
    labelled = wanted > 0
    source = torch.where(labelled, source_counts.detach().to(wanted), 0.0)
    source = source / source.sum().clamp(min=torch.finfo(torch.float64).tiny)
    # M solves a concave, piecewise linear equation. For any set of capped classes, M is at most the labels of the other
    # classes divided by the share that the caps leave to them. Classes with a higher ratio are capped first.
    ratio = torch.where(labelled, wanted / source, torch.inf)
    order = ratio.argsort()
    labels, shares = wanted[order].cumsum(0), source[order].cumsum(0)
    left = (1.0 - factor) + factor * shares
    bound = torch.where((left > 0) & labelled[order], labels / left, torch.inf)
    allowed = torch.where(source > 0, factor * source * bound.amin(), 0.0)
    return torch.where(labelled, whole * (allowed / wanted).clamp(max=1.0), whole)
