"""Draw a few pixels of a batch and read their probabilities."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from selftrain_seg.ops._library import operator


def distinct(draws: Tensor, population: int, count: int) -> Tensor:
    """Take the first distinct numbers modulo ``population`` from many draws.

    Args:
        draws: (M,) int64, not negative, uniform.
        population: upper limit of the numbers, exclusive.
        count: how many to take. If fewer are distinct, the rest is arbitrary.

    Returns:
        (count,) int64. Every set is equally likely.
    """
    chosen: Tensor = _distinct(draws, population, count)
    return chosen


def directions(logits: Tensor, chosen: Tensor) -> Tensor:
    """Return the probabilities of single pixels as vectors of length 1.

    Args:
        logits: (B, C, H, W), floating point.
        chosen: (N,) int64 in [0, B · H · W), in reading order.

    Returns:
        (N, C) float64, without gradient; computed in float32.
    """
    out: Tensor = _directions(logits.detach(), chosen)
    return out


def _distinct_anywhere(draws: Tensor, population: int, count: int) -> Tensor:
    numbers = draws % population
    values, order = numbers.sort(stable=True)
    repeated = torch.zeros_like(numbers, dtype=torch.bool)
    repeated[order] = functional.pad(values[1:] == values[:-1], (1, 0))
    return numbers[repeated.to(torch.uint8).argsort(stable=True)[:count]]


def _distinct_fake(draws: Tensor, population: int, count: int) -> Tensor:
    return draws.new_empty(count)


def _directions_anywhere(logits: Tensor, chosen: Tensor) -> Tensor:
    pixels, width = logits.shape[2] * logits.shape[3], logits.shape[3]
    image, place = chosen // pixels, chosen % pixels
    probs = logits[image, :, place // width, place % width].float().softmax(dim=1)
    return functional.normalize(probs, dim=1).double()


def _directions_fake(logits: Tensor, chosen: Tensor) -> Tensor:
    return logits.new_empty((chosen.shape[0], logits.shape[1]), dtype=torch.float64)


_distinct = operator(
    "distinct(Tensor draws, SymInt population, SymInt count) -> Tensor",
    _distinct_anywhere,
    _distinct_fake,
    kernel="launch_maps",
)
_directions = operator(
    "directions(Tensor logits, Tensor chosen) -> Tensor", _directions_anywhere, _directions_fake, kernel="launch_maps"
)
