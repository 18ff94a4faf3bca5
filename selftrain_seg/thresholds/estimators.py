"""Streaming estimators of kc: one threshold per class, or one for all classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selftrain_seg import _checks, ops
from selftrain_seg._state import Stateful
from selftrain_seg.distributed.reduce import rank_and_ranks
from selftrain_seg.ops.reading import each_image
from selftrain_seg.thresholds.sketch import ConfidenceSketch, total_counts

__all__ = ["ClassBalancedThreshold", "GlobalThreshold"]

_SMALL_DEFAULT = {"last_in": "none", "first_out": "all"}


class _Threshold(Stateful):
    """Base of both estimators, which rank pixels per class or over all classes."""

    _pooled: bool

    prior: Tensor | None
    updates: Tensor
    exact_scores: Tensor
    exact_classes: Tensor

    def __init__(
        self,
        num_classes: int,
        portion: float | Tensor,
        *,
        pool: str = "predicted",
        rank: str = "last_in",
        small: str | None = None,
        stride: int = 1,
        exact: bool = False,
        prior: Tensor | None = None,
    ) -> None:
        super().__init__()
        _checks.check_count(num_classes, "num_classes", 2)
        _checks.check_choice(pool, "pool", ("predicted", "all"))
        _checks.check_choice(rank, "rank", tuple(_SMALL_DEFAULT))
        small = _SMALL_DEFAULT[rank] if small is None else small
        _checks.check_choice(small, "small", ("none", "all"))
        _checks.check_count(stride, "stride")
        self.num_classes, self.pool, self.rank, self.small = num_classes, pool, rank, small
        self.stride, self.exact = stride, exact
        self.portion = self._checked(portion)
        self.sketch = ConfidenceSketch(num_classes)
        self.prior = None
        if prior is not None:
            if not isinstance(prior, Tensor) or prior.ndim != 3 or len(prior) != num_classes:
                raise ValueError(f"`prior`: expected (C, H, W) with C = {num_classes}, got {_shape_of(prior)}")
            _checks.check_prior(prior, prior.unsqueeze(0))
            self.add_state("prior", prior, persistent=False)
        self.add_state("updates", torch.zeros((), dtype=torch.int64), over_ranks="sum")
        if exact:
            self.add_state("exact_scores", torch.empty(0), over_ranks="sum")
            self.add_state("exact_classes", torch.empty(0, dtype=torch.int64), over_ranks="sum")

    def _checked(self, portion: Any) -> float | Tensor:
        if not isinstance(portion, Tensor):
            _checks.check_real(portion, "portion", 0.0, 1.0, open_low=True)
            return float(portion)
        if tuple(portion.shape) != (self.num_classes,):
            raise ValueError(
                f"`portion`: expected a number or (C,) = ({self.num_classes},), got {tuple(portion.shape)}"
            )
        # A float32 0.7 means 0.7, not 0.699999988.
        shares: Tensor = portion if portion.dtype == torch.float64 else portion.double().round(decimals=6)
        if not bool(((shares >= 0) & (shares <= 1)).all()):
            raise ValueError(f"`portion`: expected values in [0.0, 1.0], got {shares}")
        return shares

    @torch.no_grad()
    def update(self, logits: Tensor, *, valid: Tensor | None = None) -> None:
        """Count one batch.

        Args:
            logits: (B, C, H, W), any floating-point dtype and layout, B may be 0; detached, read once in float32.
                Pixels with a NaN logit are not counted.
            valid: (B, H, W) bool; pixels where it is False are not counted.

        Raises:
            TypeError: ``logits`` is not a floating-point tensor, or ``valid`` is not bool.
            ValueError: the number of dimensions or classes is wrong, the size differs from that of the prior, or the
                device from that of the counts.
        """
        _checks.check_logits(logits, self.num_classes)
        _checks.check_valid(valid, logits)
        self.check_home(logits, "logits")
        _checks.check_prior(self.prior, logits)
        prior, peaks, step = self.prior, self._peaks(), self.stride
        logits = logits[:, :, ::step, ::step]
        valid = None if valid is None else valid[:, ::step, ::step]
        prior = None if prior is None else prior[:, ::step, ::step]
        if self.exact:
            self._keep(logits, valid, prior, peaks)
        ops.count(
            logits,
            self.sketch.counts,
            low=self.sketch.low,
            bin_width=self.sketch.bin_width,
            every_class=self.pool == "all",
            valid=valid,
            prior=prior,
            peaks=peaks,
        )
        self.updates += 1

    def _peaks(self) -> Tensor | None:
        """Return the largest prior per class, (C,), to which scores are relative; the overall largest if pooled."""
        if self.prior is None:
            return None
        peaks = ops.prior_peaks(self.prior)
        return peaks.amax().expand_as(peaks) if self._pooled else peaks

    def _keep(self, logits: Tensor, valid: Tensor | None, prior: Tensor | None, peaks: Tensor | None) -> None:
        """Store the scores, for ``exact``."""
        if self.pool == "all":
            scores = ops.class_scores(logits, valid, prior, peaks)
            classes = torch.arange(self.num_classes, device=logits.device).view(-1, 1, 1).expand_as(scores)
        else:
            maps = None if prior is None else each_image(prior, logits)
            classes, scores = ops.pixel_scores(logits, valid, maps, peaks)[:2]
        counted = ~scores.isnan()
        self._append(scores[counted], classes[counted])

    def _append(self, scores: Tensor, classes: Tensor) -> None:
        home = self.exact_scores.device
        self._set("exact_scores", torch.cat([self.exact_scores, scores.to(home)]))
        self._set("exact_classes", torch.cat([self.exact_classes, classes.to(home)]))

    def merge(self, other: _Threshold) -> None:
        """Add the statistics of another estimator, as if its batches had been counted here.

        If the estimators have a prior, the host waits for the device.

        Args:
            other: a ``ClassBalancedThreshold`` or ``GlobalThreshold`` with the same ``num_classes``, ``pool``,
                ``stride``, ``exact`` and ``prior``; it is not changed.

        Raises:
            TypeError: ``other`` is not a threshold estimator.
            ValueError: one of these settings differs; or both have a prior and are of different types.
        """
        if not isinstance(other, _Threshold):
            raise TypeError(f"`other`: expected a threshold estimator, got {type(other).__name__}")
        self.check_same(other, "num_classes", "pool", "stride", "exact")
        priors, theirs = self.prior, other.prior
        if (priors is None) != (theirs is None):
            raise ValueError("`other`: expected a prior in both estimators or in neither")
        if priors is not None and theirs is not None:
            if priors.shape != theirs.shape or not torch.equal(priors, theirs.to(priors.device)):
                raise ValueError("`other`: expected the same prior, got a different one")
            if self._pooled != other._pooled:
                raise ValueError(f"`other`: expected a {type(self).__name__}, since scores under a prior differ")
        self.sketch.merge(other.sketch)
        self.updates += other.updates.to(self.updates.device)
        if self.exact:
            self._append(other.exact_scores, other.exact_classes)

    def class_counts(self) -> Tensor:
        """Return the number of pixels predicted as each class (with ``pool="all"``, of all counted pixels).

        Returns:
            (C,) int64, summed over ranks, so every rank must call it.
        """
        return self.sketch.class_counts()

    @torch.no_grad()
    def compute(self, portion: float | Tensor | None = None) -> Tensor:
        """Return the thresholds for a portion. It may be called for several portions after one pass.

        The host waits for the device to check that batches were counted, so call it between two passes over the data,
        outside CUDA graphs.

        Args:
            portion: a number in (0, 1], or (C,) in [0, 1] with one per class; by default the one given at construction.
                A class of portion 0 gets threshold 1 (``inf`` with a prior), whatever ``small`` is.

        Returns:
            (C,) float64 probabilities on the device of the counts. A class that is absent or too small for the portion
            (``floor(n · portion) == 0``) gets 1 with ``small="none"``, so nothing below certainty is selected, or 0
            with ``small="all"``. With a prior the values are thresholds on ``p_c q_c``, which may exceed 1, and
            ``small="none"`` gives ``inf``.

        Raises:
            TypeError: ``portion`` is neither a number nor a tensor.
            ValueError: a portion is out of range, nothing was counted yet, or ``exact`` is used on several ranks.
        """
        wanted = self.portion if portion is None else self._checked(portion)
        return self._thresholds(total_counts(self.updates, self.sketch)[0], wanted)

    def _thresholds(self, counts: Tensor, portion: float | Tensor) -> Tensor:
        rows = 1
        if isinstance(portion, Tensor):
            portion, rows = portion.to(counts.device), self.num_classes
        if self._pooled:
            counts = counts.sum(dim=0, keepdim=True).repeat(rows, 1)
        score, taken = self.sketch.ranked(counts, portion, self.rank)
        if self.exact:
            size = counts.sum(dim=1)
            score = self._exact_kth_largest((taken.long() + (self.rank == "first_out")).minimum(size), size)
        peaks = self._peaks()
        nothing = 1.0 if peaks is None else torch.inf
        few = 0.0 if self.small == "all" else nothing
        thresholds = torch.where(taken > 0, _probability_below(score), few).expand(self.num_classes)
        if isinstance(portion, Tensor) and few != nothing:
            thresholds = torch.where(portion > 0, thresholds, nothing)
        if peaks is not None:
            thresholds = torch.where(thresholds.isfinite(), thresholds * peaks.double(), thresholds)
        return thresholds.clone()

    def _exact_kth_largest(self, k: Tensor, size: Tensor) -> Tensor:
        if rank_and_ranks()[1] > 1:
            raise ValueError("`exact`: expected a single process, since exact mode does not reduce over ranks")
        scores, order = self.exact_scores.double().sort(descending=True)
        if not self._pooled:
            by_class = self.exact_classes[order].sort(stable=True).indices
            scores = scores[by_class]
        first = 0 if self._pooled else size.cumsum(0) - size
        if not len(scores):
            return torch.full(size.shape, torch.nan, dtype=torch.float64, device=size.device)
        return scores[(first + k - 1).clamp(0, len(scores) - 1)]


def _shape_of(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _probability_below(log_odds: Tensor) -> Tensor:
    """Return the float64 just below the sigmoid, so that the pixel that defines a threshold always passes it."""
    probability = torch.sigmoid(log_odds)
    return torch.nextafter(probability, torch.zeros_like(probability))


class ClassBalancedThreshold(_Threshold):
    """Estimate a confidence threshold per class: the most confident ``portion`` of its pixels reach it.

    The confidences of the n_c pixels predicted as class c are sorted in descending order. With ``rank="last_in"``,
    ``kc[c]`` is element ``floor(n_c · portion) - 1``, counted from 0: the last pixel inside the portion. With
    ``rank="first_out"`` it is element ``floor(n_c · portion)``: the first pixel outside, or the last of all for portion
    1. Pixels are ranked by log-odds, so a class whose probabilities round to 1.0 still yields the requested portion, up
    to a log-odds of about 33, where a threshold in float64 reaches its resolution. Differs from the papers: values are
    counted in fixed bins (``ConfidenceSketch``) instead of stored, so memory does not grow with the number of images;
    ``exact=True`` stores them, for tests and small sets.

    Args:
        num_classes: C, at least 2.
        portion: share of pixels to select, in (0, 1], or a (C,) tensor of shares in [0, 1], where 0 gives the
            threshold 1. CBST, CRST: 0.2 in the first round.
        pool: ``"predicted"`` ranks the pixels predicted as c by ``max_c p_c``; ``"all"`` ranks all pixels by p_c
            (CRST's kc from probabilities).
        rank: ``"last_in"`` (CBST, CRST) or ``"first_out"`` (DST-CBC), see above.
        small: threshold of a class whose portion is less than one pixel: 1 with ``"none"``, 0 with ``"all"``. The
            default is as published: ``"none"`` for ``"last_in"``, ``"all"`` for ``"first_out"``.
        stride: use every stride-th row and column. CBST and CRST use every 4th pixel of a class, as many as stride 2;
            DST-CBC every 16th pixel, as many as stride 4.
        exact: store all values (12 bytes each) and return exact elements. Single process only.
        prior: (C, H, W) spatial prior that multiplies the probabilities of all batches, which must have its size. It is
            not saved in ``state_dict``.

    State / distributed:
        Each rank holds, saves and loads its own counts, on the device of the module, which must be that of the logits.
        ``compute`` and ``class_counts`` sum them over ranks, so every rank must call them. The thresholds are equal on
        all ranks, and bit-identical to those of a single process.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range or not among its choices.

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
        >>> kc.class_counts()
        tensor([4, 0])
    """

    _pooled = False


class GlobalThreshold(_Threshold):
    """Estimate one confidence threshold for all classes: the most confident ``portion`` of all pixels reach it.

    This is the threshold of plain self-training: all pixels are ranked together, and all classes get the same value.
    With one portion per class, class c gets the confidence that the most confident ``portion[c]`` of all pixels
    reaches. Arguments, methods, rank rules and reduction over ranks are those of ``ClassBalancedThreshold``.

    Args:
        num_classes: C, at least 2.
        portion: share of all pixels to select, in (0, 1], or a (C,) tensor of shares in [0, 1].
        pool: ``"predicted"`` or ``"all"``, see ``ClassBalancedThreshold``.
        rank: ``"last_in"`` or ``"first_out"``.
        small: ``"none"`` or ``"all"``, for a portion of less than one pixel.
        stride: use every stride-th row and column.
        exact: store all values and return exact elements. Single process only.
        prior: (C, H, W) spatial prior of all batches.

    State / distributed:
        As in ``ClassBalancedThreshold``. Pixels are still counted per class, for ``class_counts``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range or not among its choices.

    References:
        The "ST" baseline of CBST (Zou et al., ECCV 2018).

    Example:
        >>> import torch
        >>> margins = torch.tensor([4.0, 3.0, -2.0, -1.0]).reshape(1, 1, 1, 4)
        >>> logits = torch.cat([margins, torch.zeros_like(margins)], dim=1)
        >>> kc = GlobalThreshold(2, portion=0.75, exact=True)
        >>> kc.update(logits)
        >>> kc.compute()  # sigmoid(2), the third of four, for both classes
        tensor([0.8808, 0.8808], dtype=torch.float64)
    """

    _pooled = True
