"""From maps of one number a pixel to a loss: weights, masks and the counts that means divide by."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

REDUCTIONS = ("none", "mean", "sum")


class Term(NamedTuple):
    """One summand of a loss: ``factor · values``, averaged over ``divisor``.

    Attributes:
        factor: the summand's weight in the loss.
        values: (B, H, W), 0 at pixels that do not take part.
        divisor: scalar tensor, or number, that ``reduction="mean"`` divides the sum by.
    """

    factor: float
    values: Tensor
    divisor: Tensor | int


def weigh(values: Tensor, pixel_weight: Tensor | None, valid: Tensor) -> Tensor:
    """Multiply a map by weights; a weight outside ``valid`` is not looked at, not even a NaN."""
    if pixel_weight is None:
        return values
    return values * torch.where(valid, pixel_weight, 0).to(values.dtype)


def reduce(terms: list[Term], reduction: str) -> Tensor:
    """Add up the terms: as a map ("none"), as sums over pixels ("sum"), or each over its own divisor ("mean").

    The map's sum is the value of "sum". A divisor of 0 becomes 1, so that no pixel gives 0 and not NaN, still
    connected to the graph. ``Tensor.sum`` adds pairwise, which keeps float32 sums of millions of pixels exact to
    about 1e-7.
    """
    if reduction == "none":
        parts = [term.factor * term.values for term in terms]
    elif reduction == "sum":
        parts = [term.factor * term.values.sum() for term in terms]
    else:
        parts = [term.factor * (term.values.sum() / _not_zero(term.divisor)) for term in terms]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _not_zero(divisor: Tensor | int) -> Tensor | int:
    return torch.where(divisor == 0, 1, divisor) if isinstance(divisor, Tensor) else divisor or 1
