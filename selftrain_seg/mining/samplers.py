"""Samplers that draw images with small classes more often."""

from __future__ import annotations

import bisect
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.mining._order import ClassSampler
from selftrain_seg.mining.index import ClassIndex

__all__ = ["ClassBalancedSampler", "ImportanceSampler", "RareClassSampler"]


class ClassBalancedSampler(ClassSampler):
    """Draw images so that every class is shown about equally often (the resampling of TCR in DT-ST).

    For each image a class c is drawn with probability ``∝ 1 / log(1.01 + d_c)``, where ``d_c = n_c / Σ n`` and n_c
    counts the images with class c drawn so far in the current sub-epoch. The image is the next one in the shuffled
    list of images that contain c, which is reshuffled after each pass. All of its classes are added to n. Classes that
    no image contains are never drawn.

    The main process draws the indices; see :meth:`update`. One draw takes about 10 µs.

    Args:
        index: the class counts of the N images.
        sub_epoch: at least 1, number of images over all ranks after which n is reset; 500 in DT-ST.
        min_share: in [0, 1], share of an image that a class must cover to count as contained; 0 requires one pixel.
        candidates: (N, C) bool, which classes of which images may be drawn; None for all.
        num_samples: images per epoch over all ranks, rounded up to a multiple of the number of ranks; None for N.
        seed: at least 0, the same on all ranks.
        rank: rank of this process; None asks torch.distributed, and means 0 without a process group.
        num_replicas: number of ranks; None asks torch.distributed, and means 1 without a process group.

    State / distributed:
        All ranks draw the same global order; of R ranks, rank r takes the positions r, r + R, r + 2R, … The order
        depends on ``seed``, the epoch and the classes, not on the number of ranks. Each complete iteration is followed
        by the next epoch; ``set_epoch`` chooses another. Concurrent iterators yield the same images independently.
        ``state_dict`` and ``load_state_dict`` resume within an epoch; the state is the same on all ranks.

    Raises:
        TypeError: ``index`` is not a ClassIndex, ``candidates`` is not a bool tensor, ``min_share`` is not a
            number, or one of the others not an int.
        ValueError: an argument out of its range; ``candidates`` is not (N, C); no image shows a class that may be
            drawn.

    References:
        Zhao et al., Towards Better Stability and Adaptability: Improve Online Self-Training for Model Adaptation
        in Semantic Segmentation, CVPR 2023.

    Example:
        >>> import torch
        >>> from selftrain_seg.mining import ClassBalancedSampler, ClassIndex
        >>> counts = torch.tensor([[4, 0]] * 99 + [[0, 4]])  # class 1 in one image of a hundred
        >>> sampler = ClassBalancedSampler(ClassIndex(counts, torch.full((100,), 4)))
        >>> 45 <= sum(image == 99 for image in sampler) <= 55
        True
    """

    def __init__(
        self,
        index: ClassIndex,
        *,
        sub_epoch: int = 500,
        min_share: float = 0.0,
        candidates: Tensor | None = None,
        num_samples: int | None = None,
        seed: int = 0,
        rank: int | None = None,
        num_replicas: int | None = None,
    ) -> None:
        _checks.check_count(sub_epoch, "sub_epoch")
        self.sub_epoch = int(sub_epoch)
        classes = index.num_classes if isinstance(index, ClassIndex) else 0
        self._shown = np.zeros(classes)  # n
        self._turns = np.zeros(classes, np.int64)  # number of the pass through each class's list
        self._cursors = np.zeros(classes, np.int64)  # position in that pass
        super().__init__(index, min_share, candidates, num_samples, seed, rank, num_replicas)

    def _begin(self) -> None:
        self._shown[:] = 0
        self._turns[:] = 0
        self._cursors[:] = 0
        self._shuffled: dict[int, np.ndarray[Any, Any]] = {}

    def _changed(self) -> None:
        self._drawable = np.array([len(images) > 0 for images in self._lists])
        self._last = int(self._drawable.nonzero()[0][-1])
        self._turns[self._cursors > 0] += 1
        self._cursors[:] = 0
        self._shuffled.clear()

    def _next(self, place: int) -> int:
        if place % self.sub_epoch == 0:
            self._shown[:] = 0
        share = self._shown / max(1.0, float(self._shown.sum()))
        sums = (self._drawable / np.log(1.01 + share)).cumsum()
        drawn = np.searchsorted(sums, self._random.uniform(place)[0] * sums[-1], side="right")
        label = min(int(drawn), self._last)
        if self._cursors[label] == len(self._lists[label]):
            self._turns[label] += 1
            self._cursors[label] = 0
            self._shuffled.pop(label, None)
        images = self._shuffled.get(label)
        if images is None:
            images = self._random.shuffle(self._lists[label], label, int(self._turns[label]))
            self._shuffled[label] = images
        image = int(images[self._cursors[label]])
        self._cursors[label] += 1
        self._shown += self._contains[image]
        return image

    def _settings(self) -> dict[str, Any]:
        return {"sub_epoch": self.sub_epoch}

    def _draw_state(self) -> dict[str, Any]:
        parts = {"shown": self._shown, "turns": self._turns, "cursors": self._cursors}
        return {name: torch.from_numpy(values.copy()) for name, values in parts.items()}

    def _load_draw_state(self, state: dict[str, Any]) -> None:
        self._shown[:] = np.asarray(state["shown"])
        self._turns[:] = np.asarray(state["turns"])
        self._cursors[:] = np.asarray(state["cursors"])
        self._shuffled.clear()


class RareClassSampler(ClassSampler):
    """Draw images with rare classes more often (the rare class sampling of DAFormer).

    For each image a class c is drawn with probability ``P(c) ∝ exp((1 - f_c) / T)``, where f_c is its share of all
    labelled pixels of the data set. Then one of the images that contain c is drawn, uniformly and with replacement.
    Classes that no image contains are never drawn.

    The main process draws the indices; see :meth:`update`. One draw takes about 2 µs.

    Args:
        index: the class counts of the N images.
        temperature: T, above 0; 0.01 in DAFormer. A larger T draws classes more evenly.
        min_share: in [0, 1], share of an image that a class must cover to count as contained. The 3,000 pixels of
            DAFormer are a share of 0.0015 of a GTA5 image.
        candidates: (N, C) bool, which classes of which images may be drawn; None for all.
        num_samples: images per epoch over all ranks, rounded up to a multiple of the number of ranks; None for N.
        seed: at least 0, the same on all ranks.
        rank: rank of this process; None asks torch.distributed, and means 0 without a process group.
        num_replicas: number of ranks; None asks torch.distributed, and means 1 without a process group.

    Attributes:
        class_probabilities: (C,) float64, P.

    State / distributed:
        As :class:`ClassBalancedSampler`.

    Raises:
        TypeError: ``index`` is not a ClassIndex, ``candidates`` is not a bool tensor, ``temperature`` or
            ``min_share`` is not a number, or one of the others not an int.
        ValueError: an argument out of its range; ``candidates`` is not (N, C); no image shows a class that may be
            drawn.

    References:
        Hoyer et al., DAFormer: Improving Network Architectures and Training Strategies for Domain-Adaptive
        Semantic Segmentation, CVPR 2022, arXiv:2111.14887.

    Example:
        >>> import torch
        >>> from selftrain_seg.mining import ClassIndex, RareClassSampler
        >>> index = ClassIndex(torch.tensor([[60, 0], [35, 5]]), torch.tensor([60, 40]))
        >>> RareClassSampler(index, temperature=0.5).class_probabilities  # 1 / (1 + exp(±(0.95 - 0.05) / 0.5))
        tensor([0.1419, 0.8581], dtype=torch.float64)
    """

    class_probabilities: Tensor

    def __init__(
        self,
        index: ClassIndex,
        *,
        temperature: float = 0.01,
        min_share: float = 0.0015,
        candidates: Tensor | None = None,
        num_samples: int | None = None,
        seed: int = 0,
        rank: int | None = None,
        num_replicas: int | None = None,
    ) -> None:
        _checks.check_real(temperature, "temperature", 0.0, float("inf"), open_low=True)
        self.temperature = float(temperature)
        super().__init__(index, min_share, candidates, num_samples, seed, rank, num_replicas)

    def _settings(self) -> dict[str, Any]:
        return {"temperature": self.temperature}

    def _changed(self) -> None:
        counts = self.index.class_counts.double()
        drawable = torch.tensor([len(images) > 0 for images in self._lists])
        shares = counts / counts.sum().clamp(min=1)
        exponent = (shares[drawable].min() - shares) / self.temperature  # at most 0, so exp never overflows
        self.class_probabilities = torch.where(drawable, exponent, -torch.inf).softmax(0)
        self._sums = list(map(float, self.class_probabilities.cumsum(0)))
        self._last = int((self.class_probabilities > 0).nonzero()[-1])

    def _next(self, place: int) -> int:
        which_class, which_image = self._random.uniform(place)
        label = min(bisect.bisect_right(self._sums, which_class * self._sums[-1]), self._last)
        images = self._lists[label]
        return int(images[int(which_image * len(images))])


class ImportanceSampler(ClassSampler):
    """Draw a class uniformly, then an image in proportion to its pixels of that class (importance sampling of SAC).

    ``P(i) = u / M + (1 - u) · 1/K Σ_c n_ic / Σ_j n_jc`` over the K classes and M images that may be drawn, where n_ic
    counts the pixels of class c in image i and u is ``uniform``. Counts of pseudo-labels are incomplete; u > 0 ensures
    that every image may be drawn. Classes and images without pixels are never drawn.

    The main process draws the indices; see :meth:`update`. One draw takes about 10 µs.

    Args:
        index: the class counts of the N images, such as those of a round of pseudo-labels.
        uniform: u in [0, 1], share of images drawn uniformly; SAC: 0.25.
        min_share: in [0, 1], share of an image that a class must cover to count as contained; 0 requires one pixel.
        candidates: (N, C) bool, which classes of which images may be drawn; None for all.
        num_samples: images per epoch over all ranks, rounded up to a multiple of the number of ranks; None for N.
        seed: at least 0, the same on all ranks.
        rank: rank of this process; None asks torch.distributed, and means 0 without a process group.
        num_replicas: number of ranks; None asks torch.distributed, and means 1 without a process group.

    Attributes:
        image_probabilities: (N,) float64, P.

    State / distributed:
        As :class:`ClassBalancedSampler`.

    Raises:
        TypeError: ``index`` is not a ClassIndex, ``candidates`` is not a bool tensor, ``uniform`` or ``min_share`` is
            not a number, or one of the others not an int.
        ValueError: an argument out of its range; ``candidates`` is not (N, C); no image shows a class that may be
            drawn.

    References:
        Araslanov and Roth, Self-supervised Augmentation Consistency for Adapting Semantic Segmentation, CVPR 2021,
        arXiv:2105.00097, importance sampling. u is that of the published code.

    Example:
        >>> import torch
        >>> from selftrain_seg.mining import ClassIndex, ImportanceSampler
        >>> index = ClassIndex(torch.tensor([[90, 0], [30, 30], [0, 10]]), torch.tensor([90, 60, 10]))
        >>> ImportanceSampler(index, uniform=0.0).image_probabilities  # (3/4, 1/4, 0) and (0, 3/4, 1/4), half of each
        tensor([0.3750, 0.5000, 0.1250], dtype=torch.float64)
    """

    image_probabilities: Tensor

    def __init__(
        self,
        index: ClassIndex,
        *,
        uniform: float = 0.25,
        min_share: float = 0.0,
        candidates: Tensor | None = None,
        num_samples: int | None = None,
        seed: int = 0,
        rank: int | None = None,
        num_replicas: int | None = None,
    ) -> None:
        _checks.check_real(uniform, "uniform", 0.0, 1.0)
        self.uniform = float(uniform)
        super().__init__(index, min_share, candidates, num_samples, seed, rank, num_replicas)

    def _settings(self) -> dict[str, Any]:
        return {"uniform": self.uniform}

    def _changed(self) -> None:
        counts = np.asarray(self.index.counts)
        self._classes = [label for label, images in enumerate(self._lists) if len(images)]
        pixels = [counts[self._lists[label], label].astype(np.int64) for label in self._classes]
        self._sums = [each.cumsum() for each in pixels]
        self._images = np.flatnonzero(self._contains.any(1))
        probabilities = np.zeros(len(counts))
        probabilities[self._images] = self.uniform / len(self._images)
        for label, each in zip(self._classes, pixels, strict=True):
            probabilities[self._lists[label]] += (1 - self.uniform) / len(pixels) * each / each.sum()
        self.image_probabilities = torch.from_numpy(probabilities)

    def _next(self, place: int) -> int:
        which_class, which_image = self._random.uniform(place)
        if which_image < self.uniform:
            return int(self._images[int(which_image / self.uniform * len(self._images))])
        drawn = int(which_class * len(self._classes))
        sums, images = self._sums[drawn], self._lists[self._classes[drawn]]
        pixel = (which_image - self.uniform) / (1 - self.uniform) * sums[-1]
        return int(images[min(int(sums.searchsorted(pixel, side="right")), len(sums) - 1)])
