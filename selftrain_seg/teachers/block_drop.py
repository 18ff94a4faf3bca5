"""Skip random blocks of a network, for consistency training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from selftrain_seg import _checks
from selftrain_seg.teachers._forwards import check_replaceable

__all__ = ["drop_blocks"]


@contextmanager
def drop_blocks(
    blocks: Iterable[nn.Module], *, chance: float = 0.5, generator: torch.Generator | None = None
) -> Iterator[list[bool]]:
    """Skip each of the given blocks with probability ``chance`` inside a ``with`` block.

    A skipped block returns its input. Dual Teacher trains the student to agree with such a sub-network of itself:
    ``0.2 * cross_entropy(dropped_logits, logits.detach().softmax(1), pixel_weight=valid)``.

    Args:
        blocks: modules whose output has the shape of their first input, such as all residual blocks of a stage except
            the first: ``resnet.layer3[1:]``.
        chance: probability that a block is skipped, in [0, 1].
        generator: CPU source of the random numbers; None for torch's default one. Use the same seed on all ranks.

    Yields:
        Which blocks are skipped, drawn once per ``with``.

    Raises:
        TypeError: a block is not a ``torch.nn.Module``; ``chance`` is not a number.
        ValueError: ``chance`` is outside [0, 1]; a block is repeated, already skipped, or the output of
            ``torch.compile`` (compiled modules around or inside a block are fine).

    References:
        Na et al., "Switching Temporary Teachers for Semi-Supervised Semantic Segmentation", NeurIPS 2023,
        arXiv:2310.18640, implicit consistency learning.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
        >>> x = torch.rand(1, 4)
        >>> with drop_blocks(net[1:], chance=1.0):
        ...     dropped = net(x)
        >>> torch.equal(dropped, net[0](x))
        True
    """
    if isinstance(blocks, nn.Module) and not hasattr(blocks, "__iter__"):
        raise TypeError(f"`blocks`: expected several modules, got one {type(blocks).__name__}")
    chosen = list(blocks)
    check_replaceable(chosen, "blocks", "block", "skipped")
    _checks.check_real(chance, "chance", 0.0, 1.0)
    skipped = (torch.rand(len(chosen), generator=generator) < chance).tolist()
    dropped = [block for block, skip in zip(chosen, skipped, strict=True) if skip]
    for block in dropped:
        block.forward = _hand_on  # an attribute of the instance, before the method of its class
    try:
        yield skipped
    finally:
        for block in dropped:
            del block.forward


def _hand_on(features: Tensor, *_: Any, **__: Any) -> Tensor:
    return features
