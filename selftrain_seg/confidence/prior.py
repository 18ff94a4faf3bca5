"""Spatial prior: how often each class occurs at each pixel (CBST-SP)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from selftrain_seg import _checks
from selftrain_seg._state import Stateful
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["SpatialPrior", "add_prior"]


class SpatialPrior(Stateful):
    """Estimate the relative frequency of each class at each pixel from source labels.

    The prior is the share of label maps with class c at a pixel, counted at the resolution ``size``, smoothed with a
    Gaussian and scaled so that each class has mean 1 over pixels. Pass it as ``prior`` to thresholds and selectors:
    they multiply the probabilities with it, without renormalising.

    Args:
        num_classes: C, at least 2.
        size: (H, W) of the counts.
        sigma_px: standard deviation of the Gaussian, in pixels of ``size``, at least 0; 0 does not smooth.
        kernel_px: odd side of the window of the Gaussian; by default about 6 sigma. The paper uses "a 70 × 70 Gaussian"
            at 1024 × 2048.
        ignore_index: label that is not counted; outside [0, C).

    Attributes:
        frequencies: (C, H, W) float64, summed over label maps.

    State / distributed:
        Each rank holds its own sums. ``compute`` adds them over ranks, so every rank must call it.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    References:
        CBST-SP (Zou et al., ECCV 2018), Section 3.4.

    Example:
        >>> import torch
        >>> prior = SpatialPrior(2, (2, 2), sigma_px=0)
        >>> prior.update(torch.tensor([[[0, 0], [1, 1]], [[0, 1], [1, 1]]]))
        >>> prior.compute()  # class 0 only in the upper row: twice on the left, once on the right
        tensor([[[2.6667, 1.3333],
                 [0.0000, 0.0000]],
                [[0.0000, 0.8000],
                 [1.6000, 1.6000]]])
    """

    frequencies: Tensor

    def __init__(
        self,
        num_classes: int,
        size: tuple[int, int],
        *,
        sigma_px: float,
        kernel_px: int | None = None,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        super().__init__()
        _checks.check_count(num_classes, "num_classes", 2)
        _checks.check_ignore_index(ignore_index, num_classes)
        size = _checks.check_size(size)
        _checks.check_real(sigma_px, "sigma_px", 0.0, 1e6)
        if kernel_px is not None:
            _checks.check_count(kernel_px, "kernel_px")
            if kernel_px % 2 == 0:
                raise ValueError(f"`kernel_px`: expected an odd number, got {kernel_px}")
        self.num_classes, self.size, self.sigma_px = num_classes, size, float(sigma_px)
        self.kernel_px = kernel_px if kernel_px is not None else math.ceil(6.0 * sigma_px) // 2 * 2 + 1
        self.ignore_index = ignore_index
        start = torch.zeros(num_classes, *size, dtype=torch.float64)
        self.add_state("frequencies", start, over_ranks="sum")

    @torch.no_grad()
    def update(self, labels: Tensor) -> None:
        """Count a batch of label maps.

        Args:
            labels: (B, h, w) integers, any resolution. Larger maps are averaged over the area of each pixel of
                ``size``, smaller ones are repeated; every map has the same weight. Labels outside [0, C) are not
                counted.

        Raises:
            TypeError: ``labels`` is not an integer tensor.
            ValueError: ``labels`` is not (B, h, w) with h, w at least 1, is on a different device from the counts,
                or, inside ``value_checks()``, has a label outside [0, C).
        """
        _checks.check_label_maps(labels)
        if 0 in labels.shape[1:]:
            raise ValueError(f"`labels`: expected (B, h, w) with h, w at least 1, got {tuple(labels.shape)}")
        self.check_home(labels, "labels")
        _checks.check_label_values(labels, self.num_classes, self.ignore_index)
        height, width = self.size
        labels, rows, row_weight = _to_cells(labels, 1, height)
        labels, columns, column_weight = _to_cells(labels, 2, width)
        labels = labels.long()  # in uint8, 300 classes would be 44
        counted = (labels >= 0) & (labels < self.num_classes) & (labels != self.ignore_index)
        cell = rows.view(-1, 1) * width + columns
        index = torch.where(counted, labels * (height * width) + cell, 0)
        weight = torch.where(counted, row_weight.view(-1, 1) * column_weight, 0.0)
        self.frequencies.view(-1).scatter_add_(0, index.flatten(), weight.flatten())

    @torch.no_grad()
    def compute(self, size: tuple[int, int] | None = None) -> Tensor:
        """Return the prior.

        Args:
            size: (H, W) of the result, resized bilinearly; by default that of the counts.

        Returns:
            (C, H, W) float32, each class with mean 1 over pixels. A class that was never seen is 0 everywhere, so it is
            never predicted.

        Raises:
            TypeError: an element of ``size`` is not an int.
            ValueError: ``size`` is not two values of at least 1.
        """
        size = self.size if size is None else _checks.check_size(size)
        maps = self.reduced("frequencies")[0].unsqueeze(0)
        if self.sigma_px > 0:
            from kornia.filters import gaussian_blur2d  # slow to import

            sides, sigmas = (self.kernel_px, self.kernel_px), (self.sigma_px, self.sigma_px)
            maps = gaussian_blur2d(maps, sides, sigmas, border_type="replicate", separable=True)
        if size != self.size:
            maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        mean = maps.mean(dim=(2, 3), keepdim=True)
        prior: Tensor = torch.where(mean > 0, maps / mean.where(mean > 0, torch.ones_like(mean)), 0.0)
        return prior.squeeze(0).float()


def add_prior(logits: Tensor, prior: Tensor) -> Tensor:
    """Multiply the probabilities with a prior and renormalise them: return the logits ``z_c + log q_c``.

    Their softmax is ``p_c q_c / Σ_d p_d q_d``. The predicted class is the same as with ``prior=`` of thresholds and
    selectors, which do not renormalise. Without renormalising, a pixel has a high score where the prior of its class is
    high, so a class-balanced threshold selects most labels at the peaks of the prior. This function avoids that: the
    prior only affects the choice between classes. Pass the result to thresholds and selectors *without* ``prior=``.

    Args:
        logits: (B, C, H, W), any floating-point dtype.
        prior: (C, H, W) non-negative, such as ``SpatialPrior.compute()``, on the same device.

    Returns:
        (B, C, H, W) float32. A class is ``-inf`` where its prior is 0. A pixel where all priors are 0 is never
        selected.

    Raises:
        TypeError: ``logits`` or ``prior`` is not a floating-point tensor.
        ValueError: ``logits`` is not (B, C, H, W), or ``prior`` is not (C, H, W) on the same device.

    Example:
        >>> import torch
        >>> logits = torch.tensor([0.6, 0.4]).log().reshape(1, 2, 1, 1)
        >>> prior = torch.tensor([0.5, 3.0]).reshape(2, 1, 1)
        >>> add_prior(logits, prior).softmax(dim=1).flatten()  # 0.3 and 1.2, renormalised
        tensor([0.2000, 0.8000])
    """
    _checks.check_logits(logits)
    _checks.check_prior(prior, logits)
    return logits.float() + prior.float().log()


def _to_cells(labels: Tensor, dim: int, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """Repeat a dimension that is too short; return the labels, and the cell and weight of each index."""
    length = labels.shape[dim]
    if length < cells:
        nearest = (torch.arange(cells, device=labels.device) * length) // cells
        labels, length = labels.index_select(dim, nearest), cells
    cell = (torch.arange(length, device=labels.device) * cells) // length
    members = torch.zeros(cells, dtype=torch.float64, device=labels.device)
    members.scatter_add_(0, cell, torch.ones_like(cell, dtype=torch.float64))
    return labels, cell, 1.0 / members[cell]
