"""Reliability of each class in each image: the agreement of two snapshots of the network (TCR of DT-ST)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg._state import Stateful
from selftrain_seg.distributed import all_reduce_sum
from selftrain_seg.ops.indices import check_indices
from selftrain_seg.ops.labels import label_sums
from selftrain_seg.ops.places import containing
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["ReliabilityBank"]

_MAX_CLASSES = 255


class ReliabilityBank(Stateful):
    """Find the classes of each image whose pseudo-labels are stable during training.

    Every ``every_steps`` steps the current network labels all images (a snapshot). For every image i and class c,
    the labels of the previous and the current snapshot give

        ``iou[i, c] = |prev_i = c and now_i = c| / |prev_i = c or now_i = c|``.

    Pixels without a label in the previous snapshot are left out; pixels that have lost their label count as changed.
    DT-ST compares the labels of *all* pixels (``top_confidence(logits).labels``), not only the selected ones. ``m_c``
    is the median of iou[·, c] over the images where it is positive. Class c of image i is a **candidate** if
    ``iou[i, c]`` is positive and at least ``m_c``. After the first snapshot of an image, there is nothing to compare:
    c is a candidate if its mean confidence is positive and at least the median of the class over the images that show
    it. Pass the candidates to :class:`ClassBalancedSampler`; :meth:`filter` sets the labels of all other classes to
    ``ignore_index``, for instance for the source of :func:`paste_classes`.

    Usage: when ``bank.due(step)``, label every image once with ``bank.update(…)``, in any batches, then call
    ``bank.refresh(step)``.

    Args:
        num_images: N.
        num_classes: C, at most 255 if ``size`` is given.
        size: (h, w) of the labels that the bank keeps, as uint8 on the CPU, h·w bytes per image; larger labels are
            subsampled (nearest). None keeps no labels: pass the previous ones to :meth:`update`.
        every_steps: training steps between snapshots; 3000 in DT-ST.
        median: "midpoint", the mean of the two middle values if their number n is even; or "rounded", the value at
            position n/2 of the ascending order, counted from 0 and with halves rounded to even, as in the published
            code of DT-ST. "rounded" is up to half a position higher, which matters for classes that few images show.
        ignore_index: label of the pixels without a class; outside [0, C).

    Attributes:
        iou: (N, C) float32, IoU of each image's latest two snapshots, 0 where the class is absent.
        confidence: (N, C) float32, mean confidence in each image's latest snapshot, 0 where the class is absent.
        candidates: (N, C) bool, as of the last :meth:`refresh`.
        compared: (N,) bool, whether ``iou`` is known.
        fresh: (N,) bool, the images labelled in the current snapshot.
        kept: (N,) bool, the images whose labels this rank keeps.
        labels: (N, h, w) uint8 on the CPU; (0, 0, 0) without ``size``.

    State / distributed:
        The whole state is in the state_dict, including an unfinished snapshot. :meth:`refresh` sums the statistics
        over ranks by one all-reduce; they are then the same on all ranks. Labels are not exchanged: each rank must
        label the same images in every snapshot (a DistributedSampler without shuffling) and save its own labels.
        Moving the module moves the statistics; labels stay on the CPU. None of the state is a registered buffer, so
        ``DistributedDataParallel`` does not overwrite it. With ``previous`` given, ``update`` never waits for the
        device.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range; ``size`` is not (h, w).

    References:
        Zhao et al., Towards Better Stability and Adaptability: Improve Online Self-Training for Model Adaptation
        in Semantic Segmentation, CVPR 2023.

    Example:
        >>> import torch
        >>> from selftrain_seg.mining import ReliabilityBank
        >>> bank = ReliabilityBank(2, 2, (1, 4))
        >>> images, sure = torch.tensor([0, 1]), torch.ones(2, 1, 4)
        >>> before = torch.tensor([[[0, 0, 0, 1]], [[0, 0, 1, 1]]])
        >>> bank.update(images, before, sure)
        >>> bank.refresh(step=0)
        >>> now = torch.tensor([[[0, 0, 0, 1]], [[0, 1, 1, 1]]])  # IoU 1 and 1; 1/2 and 2/3
        >>> bank.update(images, now, sure)
        >>> bank.refresh(step=3000)
        >>> bank.candidates
        tensor([[ True,  True],
                [False, False]])
        >>> bank.filter(now, images)[1]
        tensor([[255, 255, 255, 255]])
    """

    iou: Tensor
    confidence: Tensor
    candidates: Tensor
    compared: Tensor
    kept: Tensor
    fresh: Tensor
    labels: Tensor
    last_step: Tensor
    snapshots: Tensor

    def __init__(
        self,
        num_images: int,
        num_classes: int,
        size: tuple[int, int] | None = None,
        *,
        every_steps: int = 3000,
        median: str = "midpoint",
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        super().__init__()
        _checks.check_count(num_images, "num_images")
        _checks.check_count(num_classes, "num_classes")
        _checks.check_count(every_steps, "every_steps")
        _checks.check_choice(median, "median", ("midpoint", "rounded"))
        _checks.check_ignore_index(ignore_index, num_classes)
        shape = (0, 0, 0)
        if size is not None:
            size = _checks.check_size(size)
            if num_classes > _MAX_CLASSES:
                raise ValueError(f"`num_classes`: expected at most {_MAX_CLASSES} with `size`, got {num_classes}")
            shape = (num_images, *size)
        self.num_images, self.num_classes, self.size = num_images, num_classes, size
        self.every_steps, self.median, self.ignore_index = every_steps, median, ignore_index
        table = (num_images, num_classes)
        self.add_state("iou", torch.zeros(table))
        self.add_state("confidence", torch.zeros(table))
        self.add_state("candidates", torch.zeros(table, dtype=torch.bool))
        self.add_state("compared", torch.zeros(num_images, dtype=torch.bool))
        self.add_state("kept", torch.zeros(num_images, dtype=torch.bool))
        self.add_state("fresh", torch.zeros(num_images, dtype=torch.bool))
        none = torch.full((), _MAX_CLASSES, dtype=torch.uint8)
        self.add_state("labels", none.expand(shape), on_host=True)
        self.add_state("last_step", torch.zeros((), dtype=torch.int64), on_host=True)
        self.add_state("snapshots", torch.zeros((), dtype=torch.int64), on_host=True)

    def due(self, step: int) -> bool:
        """Return whether it is time for a snapshot.

        Args:
            step: training step.

        Returns:
            True before the first :meth:`refresh`, and from ``every_steps`` steps after the last one.
        """
        return int(self.snapshots) == 0 or step - int(self.last_step) >= self.every_steps

    @torch.no_grad()
    def update(
        self,
        indices: Tensor,
        labels: Tensor,
        confidence: Tensor | None = None,
        *,
        previous: Tensor | None = None,
    ) -> None:
        """Add the labels of some images to the current snapshot.

        An image counts once per snapshot: repeats, within a batch too, are ignored.

        Args:
            indices: (B,), integer in [0, N): which images.
            labels: (B, H, W), integer: the network's current labels, of all pixels (as in DT-ST) or of the selected
                ones. Values outside [0, C) belong to no class.
            confidence: (B, H, W), floating point in [0, 1]; NaN counts as 0. If None, images without a previous
                snapshot have no candidates.
            previous: (B, H, W), integer: the labels of the previous snapshot, if the bank does not keep them; None
                for the first snapshot.

        Raises:
            TypeError: ``indices``, ``labels`` or ``previous`` is not an integer tensor, or ``confidence`` is not a
                floating-point tensor.
            ValueError: ``labels`` is not (B, H, W) with pixels; ``indices`` is not (B,); ``confidence`` or
                ``previous`` has another shape or device than ``labels``; ``previous`` is given although the bank
                keeps the labels; an index is outside [0, N) (on a GPU checked inside ``value_checks()`` only;
                otherwise it fails in the kernel).
        """
        self._check_batch(indices, labels)
        if confidence is not None:
            _check_like(confidence, labels, "confidence")
            if not confidence.is_floating_point():
                raise TypeError(f"`confidence`: expected a floating-point dtype, got {confidence.dtype}")
        if previous is not None:
            if self.size is not None:
                raise ValueError("`previous`: expected None, as this bank keeps the labels")
            _checks.check_integer(previous, "previous")
            _check_like(previous, labels, "previous")
        if labels.shape[0] == 0:
            return

        rows = self._rows(indices)
        first = (rows[:, None] == rows).to(torch.uint8).argmax(1)  # first occurrence of the image in this batch
        stored = None
        if self.size is not None:
            labels = _subsample(labels, self.size)
            confidence = None if confidence is None else _subsample(confidence, self.size)
            stored = indices.to("cpu").long()
            check_indices(stored, self.num_images)
            previous = self.labels[stored].to(labels.device)
        old = self.fresh[rows]

        mean = self._mean_confidence(labels, confidence).to(self.iou.device)[first]
        self.confidence.index_copy_(0, rows, torch.where(old[:, None], self.confidence[rows], mean))
        if previous is not None:
            iou = self._iou(labels, previous).to(self.iou.device)[first]
            take = ~old if stored is None else ~old & self.kept[rows]
            self.iou.index_copy_(0, rows, torch.where(take[:, None], iou, self.iou[rows]))
            self.compared.index_copy_(0, rows, self.compared[rows] | take)
        if stored is not None:
            now = self._classes(labels)
            packed = torch.where(now == self.num_classes, _MAX_CLASSES, now).to("cpu", torch.uint8)[first.to("cpu")]
            self.labels[stored] = torch.where(old.to("cpu")[:, None, None], self.labels[stored], packed)
            self.kept.index_fill_(0, rows, True)
        self.fresh.index_fill_(0, rows, True)  # indexed assignment would make the host wait

    @torch.no_grad()
    def refresh(self, step: int) -> None:
        """Finish the snapshot: compute the medians over all images and the new candidates.

        An image that was not labelled in this snapshot keeps its last values, which are compared with the new medians.

        Args:
            step: training step.

        Raises:
            TypeError: ``step`` is not an int.
            ValueError: ``step`` is negative or less than at the last snapshot.
        """
        _checks.check_count(step, "step", minimum=0)
        if int(self.snapshots) and step < int(self.last_step):
            raise ValueError(
                f"`step`: expected at least {int(self.last_step)}, the step of the last snapshot, got {step}; call"
                " `reset` to start a new training"
            )
        self._join_ranks()
        by_iou, by_confidence = (_at_or_above_median(each, self.median) for each in (self.iou, self.confidence))
        self.candidates.copy_(torch.where(self.compared[:, None], by_iou, by_confidence))
        self.fresh.zero_()
        self.last_step.fill_(step)
        self.snapshots.add_(1)

    def filter(self, labels: Tensor, indices: Tensor) -> Tensor:
        """Keep the labels of candidate classes only.

        Args:
            labels: (B, H, W), integer, of any size.
            indices: (B,), integer in [0, N): which images.

        Returns:
            (B, H, W), dtype and device of ``labels``; ``ignore_index`` where the class is not a candidate.

        Raises:
            TypeError: ``labels`` or ``indices`` is not an integer tensor.
            ValueError: ``labels`` is not (B, H, W) with pixels; ``indices`` is not (B,); an index is outside [0, N),
                as in :meth:`update`.
        """
        self._check_batch(indices, labels)
        rows = self._rows(indices)
        table = torch.nn.functional.pad(self.candidates[rows], (0, 1)).to(labels.device)
        keep = table.gather(1, self._classes(labels).flatten(1)).view(labels.shape)
        return torch.where(keep, labels, self.ignore_index).to(labels.dtype)

    def _join_ranks(self) -> None:
        """Share the values of every image; if several ranks labelled it, take their mean."""
        fresh, compared = self.fresh[:, None].float(), (self.fresh & self.compared)[:, None].float()
        parts = torch.cat([fresh, compared, fresh * self.confidence, compared * self.iou], dim=1)
        fresh, compared, confidence, iou = all_reduce_sum(parts).tensor_split([1, 2, 2 + self.num_classes], dim=1)
        self.confidence.copy_(torch.where(fresh > 0, confidence / fresh.clamp(min=1), self.confidence))
        self.iou.copy_(torch.where(compared > 0, iou / compared.clamp(min=1), self.iou))
        self.compared.logical_or_(compared[:, 0] > 0)

    def _classes(self, labels: Tensor) -> Tensor:
        """Labels as int64, with C for pixels without a class."""
        wide = labels.long()
        outside = (wide < 0) | (wide >= self.num_classes) | (wide == self.ignore_index)
        return torch.where(outside, self.num_classes, wide)

    def _iou(self, now: Tensor, before: Tensor) -> Tensor:
        """(B, C): IoU over the pixels that had a class before; 0 where the class is in neither map."""
        width = self.num_classes + 2
        pairs = label_sums(now, self.num_classes, before=before).view(-1, width, width)
        both = pairs.diagonal(dim1=1, dim2=2)
        either = pairs[:, 1:-1].sum(1) + pairs.sum(2) - both  # now + before - both
        return self._of_classes(both.double() / either.clamp(min=1))

    def _mean_confidence(self, now: Tensor, confidence: Tensor | None) -> Tensor:
        """(B, C): mean confidence of each class; 0 where the class is absent or no confidence was given."""
        if confidence is None:
            return torch.zeros(len(now), self.num_classes, device=now.device)
        total = label_sums(now, self.num_classes, weights=confidence)
        return self._of_classes(total / label_sums(now, self.num_classes).clamp(min=1))

    def _of_classes(self, values: Tensor) -> Tensor:
        """Drop the first and the last column, which count pixels without a class: (B, C + 2) -> (B, C) float32."""
        return values[:, 1:-1].float()

    def _check_batch(self, indices: Tensor, labels: Tensor) -> None:
        _checks.check_label_maps(labels)
        if 0 in labels.shape[1:]:
            raise ValueError(f"`labels`: expected at least one pixel per image, got {tuple(labels.shape)}")
        _checks.check_integer(indices, "indices")
        if tuple(indices.shape) != (labels.shape[0],):
            raise ValueError(f"`indices`: expected (B,) = ({labels.shape[0]},), got {tuple(indices.shape)}")
        check_indices(indices, self.num_images)

    def _rows(self, indices: Tensor) -> Tensor:
        """Indices on the device of the tables; negative ones become N, so that they fail instead of wrapping around."""
        rows = indices.to(self.iou.device).long()
        return torch.where(rows < 0, self.num_images, rows)


def _at_or_above_median(values: Tensor, median: str) -> Tensor:
    """(N, C) bool: positive and at least the median of the positive values of the column."""
    counted = values > 0
    ordered = torch.where(counted, values, torch.inf).sort(dim=0).values
    number = counted.sum(0, keepdim=True)
    if median == "rounded":
        return counted & (values >= ordered.gather(0, (number / 2).round().long().clamp(max=len(values) - 1)))
    low = ordered.gather(0, ((number - 1) // 2).clamp(min=0))
    high = ordered.gather(0, (number // 2).clamp(max=len(values) - 1))
    return counted & (values >= (low.double() + high.double()) / 2)


def _subsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Subsample (B, H, W) maps to (B, h, w) by nearest neighbour."""
    for dim, wanted in ((1, size[0]), (2, size[1])):
        have = maps.shape[dim]
        if have != wanted:
            centres = (2 * torch.arange(wanted, device=maps.device) + 1) * have
            maps = maps.index_select(dim, containing(centres, 2 * wanted))
    return maps


def _check_like(value: Any, labels: Tensor, name: str) -> None:
    _checks.check_tensor(value, name)
    if value.shape != labels.shape:
        raise ValueError(f"`{name}`: expected (B, H, W) = {tuple(labels.shape)}, got {tuple(value.shape)}")
    _checks.check_device(value, labels, name)
