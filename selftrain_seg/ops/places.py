"""Positions of the pixels of one grid in another, computed exactly in integers.

Two grids over the same area, of n and of m pixels, share their edges but not their centres: the centre of pixel i of
the first is at (2i + 1) · m / 2n in the second, whose pixel k covers k to k + 1. ``torch.nn.functional.interpolate``
computes the same positions in float32, where they may round into the next pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor


def containing(numerator: Tensor, denominator: Tensor | int) -> Tensor:
    """The pixel that contains the place ``numerator / denominator``, both int64."""
    return torch.div(numerator, denominator, rounding_mode="floor")


def enclosing(numerator: Tensor, denominator: Tensor | int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The first of the two neighbouring pixels whose centres enclose a place, and the weight in [0, 1) of the second.

    Args:
        numerator: int64.
        denominator: even, so that half a pixel is a whole number.
        dtype: of the weight.
    """
    from_centre = numerator - denominator // 2
    weight = from_centre.remainder(denominator).to(dtype) / denominator
    return torch.div(from_centre, denominator, rounding_mode="floor"), weight
