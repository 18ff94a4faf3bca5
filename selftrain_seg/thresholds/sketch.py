"""Per-class histograms of confidence, whose size is independent of the number of images."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg._state import Stateful
from selftrain_seg.distributed import all_reduce_sum
from selftrain_seg.ops.counts import bin_index, tally

__all__ = ["ConfidenceSketch"]


class ConfidenceSketch(Stateful):
    """Count the scores of each class in fixed bins, and compute quantiles from the counts.

    A score is a log-odds ``o = log(m / (1 - m))`` (see ``log_odds``), which does not saturate. All sketches use the
    same bins, so counts of batches, machines and ranks add up exactly, in any order. The default 16384 bins over [-84,
    44) are 1/128 wide, a relative error of the odds below 0.8 %. Scores outside are counted in the outermost bins.

    Args:
        num_classes: number of rows C.
        bins: number of bins K of each row.
        low: lower end of the first bin, which also counts smaller scores.
        high: upper end of the last bin, which also counts larger scores.

    Attributes:
        counts: (C, K) int64, this rank's counts.

    State / distributed:
        Each rank holds, saves and loads its own ``counts``. ``total``, ``quantile``, ``cdf`` and ``class_counts`` sum
        them over ranks with one all-reduce, so every rank must call them. The results are bit-identical to those of a
        single process over all the data.

    Raises:
        ValueError: ``num_classes`` or ``bins`` below 1, or ``high`` not above ``low``.

    Example:
        >>> import torch
        >>> sketch = ConfidenceSketch(2)
        >>> sketch.update(torch.tensor([0.1, 1.0, 2.0, 3.0]), torch.tensor([0, 0, 0, 1]))
        >>> sketch.class_counts()
        tensor([3, 1])
        >>> sketch.quantile(0.5)  # to within one bin
        tensor([1., 3.], dtype=torch.float64)
    """

    counts: Tensor

    def __init__(self, num_classes: int, *, bins: int = 16384, low: float = -84.0, high: float = 44.0) -> None:
        super().__init__()
        _checks.check_count(num_classes, "num_classes")
        _checks.check_count(bins, "bins")
        if not float(low) < float(high):
            raise ValueError(f"`high`: expected a value above low = {low}, got {high}")
        self.num_classes, self.bins, self.low, self.high = (
            int(num_classes),
            int(bins),
            float(low),
            float(high),
        )
        self.add_state("counts", torch.zeros(self.num_classes, self.bins, dtype=torch.int64), over_ranks="sum")

    @property
    def bin_width(self) -> float:
        """Width of a bin, in log-odds."""
        return (self.high - self.low) / self.bins

    def class_counts(self) -> Tensor:
        """Return the number of scores per class, (C,) int64, summed over ranks: every rank must call it."""
        return all_reduce_sum(self.counts.sum(dim=1))

    @torch.no_grad()
    def update(self, scores: Tensor, classes: Tensor) -> None:
        """Count scores.

        Args:
            scores: any shape, floating point. NaN is not counted (see ``top_confidence``); ``-inf`` counts in the first
                bin.
            classes: same shape and device, integers. Values outside [0, C), such as the ignore label, are not
                counted.

        Raises:
            TypeError: ``scores`` is not floating point, or ``classes`` is not integer.
            ValueError: shapes or devices differ, or the counts are on a different device.
        """
        _checks.check_tensor(scores, "scores")
        _checks.check_integer(classes, "classes")
        if not scores.is_floating_point():
            raise TypeError(f"`scores`: expected a floating-point dtype, got {scores.dtype}")
        if scores.shape != classes.shape:
            raise ValueError(f"`classes`: expected {tuple(scores.shape)}, got {tuple(classes.shape)}")
        _checks.check_device(classes, scores, "classes")
        self.check_home(scores, "scores")
        size = (self.num_classes, self.bins)
        index = bin_index(scores, classes.long(), size, self.low, self.bin_width)
        self.counts += tally(index, self.counts.numel()).view_as(self.counts)

    def merge(self, other: ConfidenceSketch) -> None:
        """Add the counts of another sketch, as if its scores had been counted here.

        Args:
            other: a sketch with the same classes and bins; it is not changed.

        Raises:
            TypeError: ``other`` is not a ``ConfidenceSketch``.
            ValueError: its classes or bins differ.
        """
        self.add_sums(other, ConfidenceSketch, "num_classes", "bins", "low", "high")

    def total(self) -> Tensor:
        """Return the counts summed over all ranks, (C, K) int64."""
        return self.reduced("counts")[0].clone()

    def ranked(self, counts: Tensor, share: float | Tensor, rule: str) -> Tensor:
        """Return the ranked scores of rows of counts, see ``ops.ranked``."""
        share = share if isinstance(share, Tensor) else _checks.on_host(share)
        return ops.ranked(counts, share, rule=rule, low=self.low, bin_width=self.bin_width)

    def quantile(self, q: float) -> Tensor:
        """Return the q-quantile of the scores of each class.

        Args:
            q: a number in [0, 1].

        Returns:
            (C,) float64; NaN for a class without scores.

        Raises:
            TypeError: ``q`` is not a number.
            ValueError: ``q`` is outside [0, 1].
        """
        _checks.check_real(q, "q", 0.0, 1.0)
        return self.ranked(self.total(), float(q), "from_below")[0]

    def cdf(self, scores: Tensor) -> Tensor:
        """Return the share of scores of each class at or below a given score.

        Args:
            scores: (C,) with one per class, or () for all classes.

        Returns:
            (C,) float64 in [0, 1], linear inside a bin; NaN for a class without scores.

        Raises:
            TypeError: ``scores`` is not a tensor.
            ValueError: ``scores`` is neither () nor (C,).
        """
        _checks.check_tensor(scores, "scores")
        if scores.shape not in ((), (self.num_classes,)):
            raise ValueError(f"`scores`: expected () or (C,) = ({self.num_classes},), got {tuple(scores.shape)}")
        counts = self.total()
        place = (scores.to(counts.device).double().expand(self.num_classes) - self.low) / self.bin_width
        place = place.clamp(0, self.bins).nan_to_num(nan=0.0)
        whole = place.floor().long().clamp(max=self.bins - 1).unsqueeze(1)
        upto = counts.cumsum(1).gather(1, whole).squeeze(1).double()
        inside = counts.gather(1, whole).squeeze(1).double()
        below = upto - inside * (1.0 - (place - whole.squeeze(1)))
        return below / counts.sum(dim=1)


def total_counts(updates: Tensor, *sketches: ConfidenceSketch) -> Tensor:
    """Sum the counts of S sketches over ranks with one all-reduce, (S, C, K); an error if no rank has any updates."""
    flat = all_reduce_sum(torch.cat([*(sketch.counts.flatten() for sketch in sketches), updates.view(1)]))
    if not bool(flat[-1] > 0):
        raise ValueError("`compute`: expected at least one call of update before, got none")
    return flat[:-1].view(len(sketches), *sketches[0].counts.shape)
