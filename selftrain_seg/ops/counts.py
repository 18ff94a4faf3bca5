"""Histograms of scores by class, and counts of classes and of pairs of classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from selftrain_seg.ops._blocks import fill, new_map
from selftrain_seg.ops._library import operator
from selftrain_seg.ops.labels import label_sums
from selftrain_seg.ops.reading import class_scores, each_image, pixel_scores, prior_peaks


def count(
    logits: Tensor,
    counts: Tensor,
    *,
    low: float,
    bin_width: float,
    every_class: bool = False,
    valid: Tensor | None = None,
    prior: Tensor | None = None,
    peaks: Tensor | None = None,
) -> None:
    """Add the scores of a checked batch to ``counts`` (C, K) int64, in place: of the winners, or of all classes.

    ``peaks`` are those of the whole prior, of which ``prior`` may be a part.
    """
    prior = None if prior is None else prior.detach()
    _count(logits.detach(), counts, valid, prior, peaks, every_class, low, bin_width)


def bin_index(scores: Tensor, classes: Tensor, size: tuple[int, int], low: float, bin_width: float) -> Tensor:
    """Index of each score's bin in ``counts.flatten()`` for counts (C, K), int32; C·K for scores to leave out."""
    num_classes, bins = size
    # A score below an edge must not be counted above it, as the edge may become the threshold. With a bin width that
    # is a power of two (the default), float32 is exact; others need float64, which is slower.
    if dyadic(low, bin_width):
        place = (scores.float() * (1.0 / bin_width)).floor() - low / bin_width
    else:
        place = (scores.double() - low) / bin_width
    counted = ~place.isnan() & (classes >= 0) & (classes < num_classes)
    keys = place.clamp(0, bins - 1).nan_to_num(nan=0.0).to(torch.int32)
    return torch.where(counted, keys + classes.to(torch.int32) * bins, num_classes * bins)


def dyadic(low: float, bin_width: float) -> bool:
    """Whether bin edges are exact in float32: the width is a power of two and ``low`` a multiple of it."""
    return math.frexp(bin_width)[0] == 0.5 and (low / bin_width).is_integer()


def tally(index: Tensor, size: int) -> Tensor:
    """Count each number of ``index`` below ``size``: (size,) int64. ``index`` contains numbers up to ``size``."""
    # `bincount` would synchronise with the device, and `scatter_add` is ten times slower on a CPU.
    one = torch.ones((), dtype=torch.int64, device=index.device).expand(index.numel())
    return one.new_zeros(size + 1).index_add(0, index.flatten(), one)[:size]


def class_counts(labels: Tensor, which: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of ``which`` (bool) by label: (C,) int64, without host synchronisation."""
    return tally(torch.where(which, labels, num_classes), num_classes)


def pair_counts(labels: Tensor, other: Tensor, num_classes: int) -> Tensor:
    """How many pixels of a batch have each pair of classes, without waiting for the device.

    Args:
        labels: (B, H, W), integer. Pixels outside [0, C) are not counted.
        other: (B, H, W), integer.
        num_classes: C.

    Returns:
        (C, C + 1) int64: pixels that are i in ``labels`` and j in ``other``; in the last column those that are outside
        [0, C) in ``other``.
    """
    rows, columns = (maps.reshape(1, -1, maps.shape[2]) for maps in (labels, other))
    pairs = label_sums(columns, num_classes, before=rows).view(num_classes + 2, num_classes + 2)[1:-1]
    return torch.cat([pairs[:, 1:-1], pairs[:, :1] + pairs[:, -1:]], dim=1)


def _plain(
    logits: Tensor,
    counts: Tensor,
    valid: Tensor | None,
    prior: Tensor | None,
    peaks: Tensor | None,
    every_class: bool,
    low: float,
    bin_width: float,
) -> None:
    index = torch.empty_like(logits, dtype=torch.int32) if every_class else new_map(logits, torch.int32)
    size, maps = (counts.shape[0], counts.shape[1]), None
    if prior is not None:
        peaks, maps = prior_peaks(prior) if peaks is None else peaks, each_image(prior, logits)
    each = torch.arange(size[0], dtype=torch.int32, device=logits.device).view(-1, 1, 1)

    def block(z: Tensor, valid: Tensor | None, q: Tensor | None) -> tuple[Tensor]:
        if every_class:
            scores = class_scores(z, valid, q, peaks)
            return (bin_index(scores, each.expand_as(scores), size, low, bin_width),)
        part = pixel_scores(z, valid, q, peaks)
        return (bin_index(part.score, part.labels, size, low, bin_width),)

    fill((index,), block, logits, valid, maps)
    counts += tally(index, counts.numel()).view_as(counts)


def _fake(*_: object) -> None:
    return None


_count = operator(
    "count(Tensor logits, Tensor(a!) counts, Tensor? valid, Tensor? prior, Tensor? peaks, bool every_class,"
    " float low, float bin_width) -> ()",
    _plain,
    _fake,
    kernel="launch",
)
