"""Connected components of a batch of masks, without a loop over pixels or components."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg.ops._library import operator


def connected_components(mask: Tensor) -> Tensor:
    """Number the 8-connected components of each mask.

    Every pixel points to a pixel of its component, initially to the first one of its run in the row. In each round, the
    target of a pixel is pointed at the smallest target of its neighbours, and pointers are shortened. As this merges
    whole components, the number of rounds grows with the logarithm of a component's length. On a CPU the rounds end
    when nothing changes; elsewhere, to avoid synchronisation, after a sufficient number. On CUDA, Triton kernels merge
    the trees of pointers with atomic minima instead, in three launches.

    Args:
        mask: (B, H, W) bool.

    Returns:
        (B, H, W) int64: the number (row · W + column) of the first pixel of the component in reading order; pixels
        outside the mask have their own number.
    """
    roots: Tensor = _components(mask)
    return roots


def _anywhere(mask: Tensor, look: bool = False) -> Tensor:
    """Propagate; with ``look`` stop when nothing changes, which synchronises with the device."""
    _, height, width = mask.shape
    numbers = torch.arange(height * width, device=mask.device).view(1, height, width)
    starts = mask.clone()
    starts[:, :, 1:] &= ~mask[:, :, :-1]
    roots = torch.where(starts | ~mask, numbers, 0).cummax(2).values.flatten(1)
    flat = mask.flatten(1)
    for _ in range(_rounds(height, width)):
        least = torch.where(flat, _least_neighbour(torch.where(flat, roots, height * width), mask.shape), roots)
        parents = torch.minimum(roots, least).scatter_reduce_(1, roots, least, "amin")
        shorter = parents.gather(1, parents)
        shorter = shorter.gather(1, shorter)
        if look and torch.equal(shorter, roots):
            break
        roots = shorter
    return roots.view(mask.shape)


def _rounds(height: int, width: int) -> int:
    return 4 + 2 * (height * width).bit_length()


def _least_neighbour(values: Tensor, shape: torch.Size) -> Tensor:
    """(B, H·W): the minimum over the 3 × 3 neighbourhood of each pixel."""
    least = values.view(shape)
    for dim in (1, 2):
        before, least = least, least.clone()
        length = shape[dim] - 1
        for here, there in ((0, 1), (1, 0)):  # in place: on a CPU, allocation costs more than the comparison
            part = least.narrow(dim, here, length)
            torch.minimum(part, before.narrow(dim, there, length), out=part)
    return least.flatten(1)


def _on_cpu(mask: Tensor) -> Tensor:
    return _anywhere(mask, look=True)


def _fake(mask: Tensor) -> Tensor:
    return mask.new_empty(mask.shape, dtype=torch.int64)


_components = operator(
    "connected_components(Tensor mask) -> Tensor", _anywhere, _fake, cpu=_on_cpu, kernel="launch_maps"
)
