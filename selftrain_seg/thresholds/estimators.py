"""Streaming estimators of kc: one threshold a class, or one for all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from selftrain_seg import _checks, kernels
from selftrain_seg._numerics import blocks
from selftrain_seg.confidence._scores import class_scores, pixel_scores, prior_peaks
from selftrain_seg.distributed import all_reduce_max, all_reduce_sum, several_ranks
from selftrain_seg.kernels import launch
from selftrain_seg.thresholds.sketch import ConfidenceSketch

__all__ = ["ClassBalancedThreshold", "GlobalThreshold"]

_SMALL_DEFAULT = {"crst": "none", "dst-cbc": "all"}


class _Threshold(nn.Module):
    """All that the two estimators share; they differ in whether classes are ranked apart or together."""

    _pooled: bool

    updates: Tensor
    peaks: Tensor
    exact_scores: Tensor
    exact_classes: Tensor

    def __init__(
        self,
        num_classes: int,
        portion: float | Tensor,
        *,
        pool: str = "predicted",
        rank: str = "crst",
        small: str | None = None,
        stride: int = 1,
        exact: bool = False,
    ) -> None:
        super().__init__()
        _checks.check_count(num_classes, "num_classes")
        _checks.check_choice(pool, "pool", ("predicted", "all"))
        _checks.check_choice(rank, "rank", tuple(_SMALL_DEFAULT))
        small = _SMALL_DEFAULT[rank] if small is None else small
        _checks.check_choice(small, "small", ("none", "all"))
        _checks.check_count(stride, "stride")
        self.num_classes, self.pool, self.rank, self.small = num_classes, pool, rank, small
        self.stride, self.exact = stride, exact
        self.portion = self._checked(portion)
        self._check_pooled(self.portion)
        self.sketch = ConfidenceSketch(num_classes)
        self.register_buffer("updates", torch.zeros(2, dtype=torch.int64))  # without a prior, with one
        # Peaks of the prior, what its scores are relative to; -inf until there is one.
        self.register_buffer("peaks", torch.full((num_classes,), -torch.inf))
        if exact:
            self.register_buffer("exact_scores", torch.empty(0))
            self.register_buffer("exact_classes", torch.empty(0, dtype=torch.int32))

    def extra_repr(self) -> str:
        return (
            f"num_classes={self.num_classes}, portion={self.portion}, pool={self.pool!r}, rank={self.rank!r}, "
            f"small={self.small!r}, stride={self.stride}, exact={self.exact}"
        )

    def _checked(self, portion: Any) -> float | Tensor:
        if not isinstance(portion, Tensor):
            _checks.check_real(portion, "portion", 0.0, 1.0, open_low=True)
            return float(portion)
        if tuple(portion.shape) != (self.num_classes,):
            raise ValueError(
                f"`portion`: expected a number or (C,) = ({self.num_classes},), got {tuple(portion.shape)}"
            )
        # A float32 0.7 means 0.7, not 0.699999988: its product with a count must not be rounded down to one less.
        shares: Tensor = portion if portion.dtype == torch.float64 else portion.double().round(decimals=6)
        if not bool(((shares > 0) & (shares <= 1)).all()):
            raise ValueError(f"`portion`: expected values in (0.0, 1.0], got {shares}")
        return shares

    @torch.no_grad()
    def update(self, logits: Tensor, *, prior: Tensor | None = None) -> None:
        """Count one batch.

        Args:
            logits: (B, C, H, W), any floating-point dtype, layout and B (0 too); detached, read once in float32.
                A pixel with a NaN logit is not counted.
            prior: (C, H, W) spatial prior that multiplies the probabilities: the same with all batches, or none.

        Raises:
            TypeError: ``logits`` or ``prior`` is no floating-point tensor.
            ValueError: wrong rank, another number of classes, or a prior of another shape or device.
        """
        _checks.check_logits(logits, self.num_classes)
        if prior is not None:
            _checks.check_prior(prior, logits)
            peaks = prior_peaks(prior).to(self.peaks.device)
            peaks = peaks.amax().expand_as(peaks) if self._pooled else peaks
            self.peaks = torch.where(self.peaks > -torch.inf, self.peaks, peaks)
            prior = prior[:, :: self.stride, :: self.stride]
        logits = logits[:, :, :: self.stride, :: self.stride]
        counts = self.sketch.counts
        plain = self.exact or self.pool == "all" or prior is not None or counts.device != logits.device
        if not plain and kernels.chosen(logits, "count_scores"):
            launch.count_scores(logits, counts, low=self.sketch.low, bin_width=self.sketch.bin_width)
            self.updates[0] += 1
            return
        batch, num_classes, height, width = logits.shape
        shape = (batch, height, width) if self.pool == "predicted" else logits.shape
        keys = torch.empty(shape, dtype=torch.int32, device=logits.device)
        each_class = torch.arange(num_classes, dtype=torch.int32, device=logits.device).view(-1, 1, 1)
        kept: list[tuple[Tensor, Tensor]] = []
        for images, rows in blocks(logits):
            block, block_prior = logits[images, :, rows], None if prior is None else prior[:, rows]
            if self.pool == "predicted":
                part = pixel_scores(block, block_prior, self.peaks)
                scores, classes = part.score, part.labels
            else:
                scores = class_scores(block, block_prior, self.peaks)
                classes = each_class.expand_as(scores)
            keys[images, ..., rows, :] = self.sketch.keys(scores, classes)
            if self.exact:
                kept.append((scores.flatten(), classes.flatten().int()))
        self.sketch.add_keys(keys)
        self.updates[int(prior is not None)] += 1
        if kept:
            scores, classes = (torch.cat(parts).to(self.exact_scores.device) for parts in zip(*kept, strict=True))
            counted = ~scores.isnan()
            self.exact_scores = torch.cat([self.exact_scores, scores[counted]])
            self.exact_classes = torch.cat([self.exact_classes, classes[counted]])

    def merge(self, other: _Threshold) -> None:
        """Add the statistics of another estimator, as if its batches had been seen here.

        Args:
            other: an estimator with the same classes, pool and mode; it is not changed.

        Raises:
            TypeError: ``other`` is no threshold estimator.
            ValueError: its classes, pool, stride, mode or prior differ.
        """
        if not isinstance(other, _Threshold):
            raise TypeError(f"`other`: expected a threshold estimator, got {type(other).__name__}")
        for name in ("num_classes", "pool", "stride", "exact"):
            mine, its = getattr(self, name), getattr(other, name)
            if mine != its:
                raise ValueError(f"`other`: expected {name} = {mine!r}, got {its!r}")
        peaks = other.peaks.to(self.peaks.device)
        if bool(((peaks != self.peaks) & (peaks > -torch.inf) & (self.peaks > -torch.inf)).any()):
            raise ValueError("`other`: expected the same prior, got one with other peaks")
        self.peaks = torch.maximum(self.peaks, peaks)
        self.sketch.merge(other.sketch)
        self.updates += other.updates.to(self.updates.device)
        if self.exact:
            home = self.exact_scores.device
            self.exact_scores = torch.cat([self.exact_scores, other.exact_scores.to(home)])
            self.exact_classes = torch.cat([self.exact_classes, other.exact_classes.to(home)])

    def reset(self) -> None:
        """Forget all batches; settings stay."""
        self.sketch.reset()
        self.updates.zero_()
        self.peaks.fill_(-torch.inf)
        if self.exact:
            self.exact_scores = self.exact_scores[:0]
            self.exact_classes = self.exact_classes[:0]

    @property
    def class_counts(self) -> Tensor:
        """(C,) int64: counted pixels predicted as each class (``pool="all"``: all that were counted).

        Summed over ranks: where there are several, all of them must read it.
        """
        return self.sketch.class_counts

    @torch.no_grad()
    def compute(self, portion: float | Tensor | None = None) -> Tensor:
        """Return the thresholds for a portion; any number of portions can be asked of the same pass.

        Args:
            portion: a number in (0, 1], or (C,) one a class; by default the one given at construction.

        Returns:
            (C,) float64 probabilities on the device of the statistics. A class too small for the portion
            (``floor(n · portion) == 0``, absent classes included) gets 1 (``small="none"``: nothing below
            certainty is selected) or 0 (``small="all"``). With a prior the values are those of ``p_c q_c``,
            which may exceed 1, and ``small="none"`` gives ``inf``.

        Raises:
            TypeError: ``portion`` is neither a number nor a tensor.
            ValueError: a portion outside (0, 1]; nothing was counted yet; batches with and without a prior were
                mixed; or exact mode on several ranks.
        """
        wanted = self.portion if portion is None else self._checked(portion)
        self._check_pooled(wanted)
        counts, with_prior = self._reduced()
        if self._pooled:
            counts = counts.sum(dim=0, keepdim=True)
        size = counts.sum(dim=1)
        share = wanted.to(size.device) if isinstance(wanted, Tensor) else wanted
        taken = (size.double() * share).floor().long()
        k = taken if self.rank == "crst" else (taken + 1).minimum(size)
        score = self._exact_kth_largest(k, size) if self.exact else self.sketch.kth_largest(counts, k)
        nothing = (torch.inf if with_prior else 1.0) if self.small == "none" else 0.0
        thresholds = torch.where(taken > 0, _probability_not_above(score), nothing).expand(self.num_classes)
        if with_prior:
            peaks = all_reduce_max(self.peaks).to(thresholds.device).double().clamp(min=0.0)
            thresholds = torch.where(thresholds.isfinite(), thresholds * peaks, thresholds)
        return thresholds.clone()

    def _check_pooled(self, portion: float | Tensor) -> None:
        if self._pooled and isinstance(portion, Tensor):
            raise ValueError("`portion`: expected a number, one portion for all classes, got a tensor")

    def _reduced(self) -> tuple[Tensor, bool]:
        """Counts over all ranks by one all-reduce, and whether they were made with a prior."""
        counts = self.sketch.counts
        flat = all_reduce_sum(torch.cat([counts.flatten(), self.updates.to(counts.device)]))
        plain, with_prior = (bool(updates) for updates in flat[-2:] > 0)
        if not (plain or with_prior):
            raise ValueError("`compute`: expected at least one call of update before, got none")
        if plain and with_prior:
            raise ValueError("`prior`: expected with every update or with none, got both")
        return flat[:-2].view_as(counts), with_prior

    def _exact_kth_largest(self, k: Tensor, size: Tensor) -> Tensor:
        if several_ranks():
            raise ValueError("`exact`: expected a single process, since exact mode does not reduce over ranks")
        scores, order = self.exact_scores.double().sort(descending=True)
        if not self._pooled:
            by_class = self.exact_classes[order].sort(stable=True).indices
            scores = scores[by_class]
        first = size.cumsum(0) - size
        if not len(scores):
            return torch.full(size.shape, torch.nan, dtype=torch.float64, device=size.device)
        return scores[(first + k - 1).clamp(0, len(scores) - 1).to(scores.device)].to(size.device)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # Exact mode's buffers grow, so they take the size of what is loaded.
        for name in ("exact_scores", "exact_classes") if self.exact else ():
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor):
                mine = getattr(self, name)
                setattr(self, name, torch.empty(saved.shape, dtype=mine.dtype, device=mine.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _probability_not_above(log_odds: Tensor) -> Tensor:
    """Sigmoid in float64, rounded down: the pixel that defines a threshold must pass it."""
    probability = torch.sigmoid(log_odds)
    below = torch.nextafter(probability, torch.zeros_like(probability))
    return torch.where(torch.logit(probability) > log_odds, below, probability)


class ClassBalancedThreshold(_Threshold):
    """Estimate, for every class, the confidence that its most confident ``portion`` of pixels reaches.

    Over all pixels predicted as class c, n_c of them, with confidences sorted in descending order, ``kc[c]`` is
    element ``floor(n_c · portion) - 1``, counted from 0 (``rank="crst"``), or ``floor(n_c · portion)``
    (``rank="dst-cbc"``, where portion 1 gives the smallest). Confidences are ranked by their log-odds, so a class
    whose probabilities round to 1.0 still yields the portion asked for; up to a log-odds of about 33, beyond which the
    threshold itself, a float64 probability, can no longer tell values apart.
    Differs from the papers: no values are kept but counts in fixed bins (``ConfidenceSketch``), so memory does
    not grow with images; ``exact=True`` keeps all values, for tests and small sets.

    Args:
        num_classes: C.
        portion: share of pixels to select, in (0, 1], or a (C,) tensor of shares. CBST, CRST: 0.2 at first.
        pool: ``"predicted"``: the pool of class c is the pixels predicted as c, with confidence ``max_c p_c``;
            ``"all"``: p_c at all pixels (CRST's kc from probabilities).
        rank: which element is taken, ``"crst"`` or ``"dst-cbc"``, see above.
        small: what a class gets whose pool holds less than one pixel of the portion: ``"none"``, threshold 1,
            or ``"all"``, threshold 0. By default as published: ``"none"`` for crst, ``"all"`` for dst-cbc.
        stride: use every stride-th row and column, one pixel in stride². CBST and CRST take every 4th pixel of a
            class, as many as stride 2; DST-CBC every 16th pixel, as many as stride 4.
        exact: keep all values (4 + 4 bytes each) and return exact elements. One process only.

    State / distributed:
        Counts, the number of updates and the prior's peaks are buffers, each rank's own: a checkpoint must keep
        those of every rank (or be loaded on one rank, with the others reset). Keep the module on the device of the
        logits, or every update copies its counts to the host. ``compute`` and ``class_counts`` sum them over ranks, so
        every rank must call them; thresholds are the same on all, bit for bit those of one process. Keep the module
        out of what ``DistributedDataParallel`` wraps: with ``broadcast_buffers``, its default, that overwrites the
        counts of all ranks with those of the first.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range or choices.

    References:
        Zou et al., "Unsupervised Domain Adaptation for Semantic Segmentation via Class-Balanced Self-Training",
        ECCV 2018, Algorithm 2. Zou et al., "Confidence Regularized Self-Training", ICCV 2019.
        Feng et al., "DMT / Semi-supervised semantic segmentation via dynamic self-training and class-balanced
        curriculum", arXiv:2004.08514.

    Example:
        >>> import torch
        >>> margins = torch.tensor([4.0, 3.0, 2.0, 1.0]).reshape(1, 1, 1, 4)
        >>> logits = torch.cat([margins, torch.zeros_like(margins)], dim=1)  # all predicted as class 0
        >>> kc = ClassBalancedThreshold(2, portion=0.5, exact=True)
        >>> kc.update(logits)
        >>> kc.compute()  # sigmoid(3), the second of four; class 1 is absent
        tensor([0.9526, 1.0000], dtype=torch.float64)
        >>> kc.compute(portion=1.0)
        tensor([0.7311, 1.0000], dtype=torch.float64)
        >>> kc.class_counts
        tensor([4, 0])
    """

    _pooled = False


class GlobalThreshold(_Threshold):
    """Estimate the confidence that the most confident ``portion`` of all pixels reaches, whatever their class.

    The threshold of plain self-training: one pool, one value. As ``ClassBalancedThreshold`` in all else: same
    arguments (``portion`` is a number), methods, rank rules and reduction over ranks.

    Args:
        num_classes: C.
        portion: share of all pixels to select, in (0, 1].
        pool: ``"predicted"`` or ``"all"``, see ``ClassBalancedThreshold``.
        rank: ``"crst"`` or ``"dst-cbc"``.
        small: ``"none"`` or ``"all"``, for a pool of less than one pixel of the portion.
        stride: use every stride-th row and column.
        exact: keep all values and return exact elements. One process only.

    State / distributed:
        As ``ClassBalancedThreshold``. The counts are kept by class all the same, for ``class_counts``.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range or choices.

    References:
        The "ST" baseline of CBST (Zou et al., ECCV 2018).

    Example:
        >>> import torch
        >>> margins = torch.tensor([4.0, 3.0, -2.0, -1.0]).reshape(1, 1, 1, 4)
        >>> logits = torch.cat([margins, torch.zeros_like(margins)], dim=1)
        >>> kc = GlobalThreshold(2, portion=0.75, exact=True)
        >>> kc.update(logits)
        >>> kc.compute()  # sigmoid(2), the third of four; as many values as there are classes
        tensor([0.8808, 0.8808], dtype=torch.float64)
    """

    _pooled = True
