"""Portions that keep the classes' shares of the labels near those in the source labels."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.thresholds._portions import check_class_counts, of_classes

__all__ = ["aligned_portion"]


def aligned_portion(
    portion: float | Tensor, predicted_counts: Tensor, source_counts: Tensor, *, factor: float = 2.0
) -> Tensor:
    """Lower the portions of the classes that would have more than ``factor`` times their share in the source labels.

    With n_c pixels predicted as c, ``a_c = ρ_c n_c`` would be labelled c. With q_c the share of c in the source
    labels, among the classes of which anything would be labelled, the result is ``ρ'_c = ρ_c · min(1, factor q_c M /
    a_c)``, where M is the largest number that equals ``Σ_c min(a_c, factor q_c M)``: the number of labels that are
    left. So class c has at most ``factor · q_c`` of these labels, and no label is dropped without need. A class that
    grows from round to round by its own mistakes is held back; one that the source labels lack is never labelled. A
    cap does nothing for classes that are found too seldom.

    Args:
        portion: ρ, a number in [0, 1], or (C,) one a class.
        predicted_counts: (C,) pixels predicted as each class on the target: ``class_counts()`` of a threshold.
        source_counts: (C,) pixels of each class in the source labels, or shares of them. Only their ratios count.
        factor: in [1, 1e6]: how many times as frequent a class may plausibly be in the target. 1 asks for the very
            shares of the source, and the class that is found too seldom then limits all others.

    Returns:
        (C,) float64 in [0, 1], on the device of ``predicted_counts``; at most ``portion`` everywhere, and equal to it
        for a class of which nothing is predicted.

    Raises:
        TypeError: counts are no tensors of numbers, or ``portion`` or ``factor`` no number.
        ValueError: counts are not (C,), shapes differ, or a number is out of its range.

    References:
        A cap in the spirit of the distribution alignment of ReMixMatch (Berthelot et al., ICLR 2020), which rescales
        predictions and not portions.

    Example:
        >>> import torch
        >>> predicted, source = torch.tensor([900.0, 80.0, 20.0]), torch.tensor([90.0, 9.0, 1.0])
        >>> portions = aligned_portion(0.5, predicted, source, factor=1.5)  # the third may have 1.5 % of the labels
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
    whole = of_classes(portion, predicted_counts)
    wanted = whole * predicted_counts.detach().double()
    some = wanted > 0
    source = torch.where(some, source_counts.detach().to(wanted), 0.0)
    source = source / source.sum().clamp(min=torch.finfo(torch.float64).tiny)
    # M solves a concave equation, piecewise linear: whichever classes are capped, it is at most the labels of the
    # others over the share that the caps leave to them, and the classes of the lowest ratio are the last to be capped.
    ratio = torch.where(some, wanted / source, torch.inf)
    order = ratio.argsort()
    labels, shares = wanted[order].cumsum(0), source[order].cumsum(0)
    left = (1.0 - factor) + factor * shares
    bound = torch.where((left > 0) & some[order], labels / left, torch.inf)
    allowed = torch.where(source > 0, factor * source * bound.amin(), 0.0)
    return torch.where(some, whole * (allowed / wanted).clamp(max=1.0), whole)
