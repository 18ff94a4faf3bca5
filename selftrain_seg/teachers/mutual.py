"""Two students that label for each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from selftrain_seg.outputs import find
from selftrain_seg.teachers import _weights
from selftrain_seg.teachers._evaluating import evaluating
from selftrain_seg.types import PseudoLabels

__all__ = ["MutualLabels", "mutual_labels"]


class MutualLabels(NamedTuple):
    """Pseudo-labels that two students make for each other.

    Attributes:
        for_first: ``PseudoLabels`` made by the second student, to train the first on.
        for_second: ``PseudoLabels`` made by the first student, to train the second on.
    """

    for_first: PseudoLabels
    for_second: PseudoLabels


@torch.no_grad()
def mutual_labels(
    first: nn.Module,
    second: nn.Module,
    images: Tensor,
    select: Callable[[Tensor], PseudoLabels]
    | tuple[Callable[[Tensor], PseudoLabels], Callable[[Tensor], PseudoLabels]],
) -> MutualLabels:
    """Let each of two students label a batch for the other (DMT).

    Online, call it in each training step. In offline rounds, call it once for each batch of the target set, with the
    thresholds of each student in ``select``, and store the labels. Train on them with
    ``selftrain_seg.losses.dynamic_mutual_loss``, which takes the other student's labels and confidence.

    Args:
        first: a network, wrapped or not. It is in evaluation mode during the call.
        second: another network; the two should differ in initialisation or pre-training.
        images: (B, 3, H, W), or any input that both accept.
        select: maps logits to ``PseudoLabels``, for instance ``lambda z: select_hard(z, thresholds)``; or a pair of
            functions, one for the logits of each student.

    Returns:
        ``MutualLabels(for_first, for_second)``, without gradient.

    Raises:
        TypeError: a student is not a ``torch.nn.Module`` or returns no logits.
        ValueError: ``select`` is a tuple that is not a pair.

    References:
        Feng et al., "DMT: Dynamic Mutual Training for Semi-Supervised Learning", Pattern Recognition 2022,
        arXiv:2004.08514.

    Example:
        >>> import torch
        >>> from selftrain_seg.selectors import select_fixed
        >>> first, second = torch.nn.Conv2d(3, 2, 1), torch.nn.Conv2d(3, 2, 1)
        >>> labels = mutual_labels(first, second, torch.rand(1, 3, 4, 4), lambda z: select_fixed(z, threshold=0.5))
        >>> labels.for_first.labels.shape
        torch.Size([1, 4, 4])
    """
    _weights.check_module(first, "first")
    _weights.check_module(second, "second")
    selects = select if isinstance(select, tuple) else (select, select)
    if len(selects) != 2:
        raise ValueError(f"`select`: expected one function or a pair, got {len(selects)}")
    made = []
    for student, own_select in zip((first, second), selects, strict=True):
        network = _weights.unwrap(student)
        with evaluating(network):
            made.append(own_select(find(network(images))))
    return MutualLabels(for_first=made[1], for_second=made[0])
