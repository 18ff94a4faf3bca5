"""How reliable each class is in each image: whether two snapshots of the network agree on it (TCR of DT-ST)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg._state import Stateful
from selftrain_seg.distributed import all_reduce_sum
from selftrain_seg.ops.indices import check_indices
from selftrain_seg.ops.labels import label_sums
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["ReliabilityBank"]

_MAX_CLASSES = 255


class ReliabilityBank(Stateful):
    """Find, image by image, the classes whose pseudo-labels are steady over training.

    Every ``every_steps`` the current network labels all images (a snapshot), and for every image i and class c

        ``iou[i, c] = |prev_i = c and now_i = c| / |prev_i = c or now_i = c|``

    is taken between its labels of the previous snapshot and the current ones. Pixels that had no label in the previous
    one are left out; those that have none any more count as changed. DT-ST compares the network's labels of *all*
    pixels (``top_confidence(logits).labels``), not the selected ones: how steady the network is and how sure it is
    are two questions. ``m_c`` is the median of iou[·, c] over the images where it is positive. Class c of image i is a
    **candidate** when ``iou[i, c] ≥ m_c`` and positive. After an image's first snapshot there is nothing to compare
    yet: then c is a candidate when its mean confidence is positive and at or above the class's median over the images
    that show it. Candidates feed :class:`ClassBalancedSampler` and :func:`paste_classes`; :meth:`filter` turns all
    other regions into ``ignore_index``.

    Use: ``if bank.due(step)``, label every image once, in any batches, with ``bank.update(…)``, then
    ``bank.refresh(step)``.

    Args:
        num_images: N.
        num_classes: C, at most 255 where ``size`` is given.
        size: (h, w) at which labels are kept, as uint8 on the CPU, h·w bytes an image; larger labels are
            subsampled (nearest). None keeps none: hand the previous labels to :meth:`update`, from disk.
        every_steps: training steps between snapshots; 3000 in DT-ST.
        median: of n values, ascending and counted from 0: "midpoint", the mean of the two in the middle where n is
            even; or "rounded", number n/2 rounded, halves to the even number, as the published code of DT-ST has it:
            up to half a place higher, which matters where few images show a class.
        ignore_index: label of the pixels that belong to no class; outside [0, C).

    Attributes:
        iou: (N, C) float32; of each image's latest snapshot but the first, 0 where the class is absent.
        confidence: (N, C) float32, mean confidence in each image's latest snapshot, 0 where the class is absent.
        candidates: (N, C) bool, after the last :meth:`refresh`.
        compared: (N,) bool, whether ``iou`` is known.
        fresh: (N,) bool, the images labelled in the running snapshot.
        kept: (N,) bool, the images whose labels this rank keeps.
        labels: (N, h, w) uint8 on the CPU, or (0, 0, 0).

    State / distributed:
        All of it is in the state_dict, a snapshot half taken too. :meth:`refresh` adds up what the ranks found by
        one all-reduce; after it, all statistics are the same on all ranks. Labels are not exchanged: each rank
        must label the same images in every snapshot (a DistributedSampler without shuffling), and saves its own
        labels. Moving the module moves the statistics; labels stay on the CPU. Nothing is a buffer, so
        ``DistributedDataParallel`` leaves every rank its own. With the previous labels handed in, ``update`` never
        waits for the device.

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
                raise ValueError(f"`num_classes`: expected at most {_MAX_CLASSES} to be kept, got {num_classes}")
            shape = (num_images, *size)
        self.num_images, self.num_classes, self.size = num_images, num_classes, size
        self.every_steps, self.median, self.ignore_index = every_steps, median, ignore_index
        table = (num_images, num_classes)
        self.add_state("iou", torch.zeros(table))
        self.add_state("confidence", torch.zeros(table))
        self.add_state("candidates", torch.zeros(table, dtype=torch.bool))
        self.add_state("compared", torch.zeros(num_images, dtype=torch.bool))
        self.add_state("kept", torch.zeros(num_images, dtype=torch.bool))  # this rank keeps its labels
        self.add_state("fresh", torch.zeros(num_images, dtype=torch.bool))  # seen in the running snapshot
        none = torch.full((), _MAX_CLASSES, dtype=torch.uint8)
        self.add_state("labels", none.expand(shape), on_host=True)
        self.add_state("last_step", torch.zeros((), dtype=torch.int64), on_host=True)
        self.add_state("snapshots", torch.zeros((), dtype=torch.int64), on_host=True)

    def extra_repr(self) -> str:  # noqa: D102
        return (
            f"num_images={self.num_images}, num_classes={self.num_classes}, size={self.size}, "
            f"every_steps={self.every_steps}, median={self.median!r}, ignore_index={self.ignore_index}"
        )

    def due(self, step: int) -> bool:
        """Tell whether it is time for a snapshot.

        Args:
            step: of training.

        Returns:
            True before the first :meth:`refresh` and ``every_steps`` after the last one.
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
        """Take in the labels of some images in the running snapshot; an image's second time is passed over.

        That holds inside a batch, too: the first of equal indices counts.

        Args:
            indices: (B,), integer in [0, N): which images.
            labels: (B, H, W), integer: what the network says now, of all pixels as published, or of those it is sure
                of. Values outside [0, C) belong to no class.
            confidence: (B, H, W), floating point in [0, 1]; None leaves classes of images that cannot be compared
                without candidates. NaN counts 0.
            previous: (B, H, W), integer: the labels of the previous snapshot, where they are not kept here; None
                for the first.

        Raises:
            TypeError: ``indices``, ``labels`` or ``previous`` is not an integer tensor, ``confidence`` not a
                floating-point one.
            ValueError: ``labels`` is not (B, H, W) with pixels; ``indices`` is not (B,); ``confidence`` or
                ``previous`` has another shape than ``labels``, or another device; ``previous`` is given though
                labels are kept here; an index on the CPU is outside [0, N), and inside ``value_checks()`` one on any
                device. Elsewhere such an index fails on the GPU.
        """
        self._check_batch(indices, labels)
        if confidence is not None:
            _check_like(confidence, labels, "confidence")
            if not confidence.is_floating_point():
                raise TypeError(f"`confidence`: expected a floating-point dtype, got {confidence.dtype}")
        if previous is not None:
            if self.size is not None:
                raise ValueError("`previous`: expected None, as this bank keeps the labels itself")
            _checks.check_integer(previous, "previous")
            _check_like(previous, labels, "previous")
        if labels.shape[0] == 0:
            return

        rows = self._rows(indices)
        first = (rows[:, None] == rows).to(torch.uint8).argmax(1)  # of the same image in this batch
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
        self.fresh.index_fill_(0, rows, True)  # an assignment through an index would make the host wait

    @torch.no_grad()
    def refresh(self, step: int) -> None:
        """Close the snapshot: medians over all images, and new candidates.

        An image that was not labelled in this snapshot keeps its last values and is measured by the new medians.

        Args:
            step: of training.

        Raises:
            TypeError: ``step`` is not an int.
            ValueError: ``step`` is negative, or before that of the last snapshot.
        """
        _checks.check_count(step, "step", minimum=0)
        if int(self.snapshots) and step < int(self.last_step):
            raise ValueError(
                f"`step`: expected at least {int(self.last_step)}, that of the last snapshot, got {step}: the next one"
                " would be due far too late; `reset` begins anew"
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
            (B, H, W), dtype and device of ``labels``: ``ignore_index`` where the class is no candidate in its image.

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
        """Take every image's values from the rank that labelled it, the mean where several did."""
        fresh, compared = self.fresh[:, None].float(), (self.fresh & self.compared)[:, None].float()
        parts = torch.cat([fresh, compared, fresh * self.confidence, compared * self.iou], dim=1)
        fresh, compared, confidence, iou = all_reduce_sum(parts).tensor_split([1, 2, 2 + self.num_classes], dim=1)
        self.confidence.copy_(torch.where(fresh > 0, confidence / fresh.clamp(min=1), self.confidence))
        self.iou.copy_(torch.where(compared > 0, iou / compared.clamp(min=1), self.iou))
        self.compared.logical_or_(compared[:, 0] > 0)

    def _classes(self, labels: Tensor) -> Tensor:
        """int64 classes, C for all that is none."""
        wide = labels.long()
        outside = (wide < 0) | (wide >= self.num_classes) | (wide == self.ignore_index)
        return torch.where(outside, self.num_classes, wide)

    def _iou(self, now: Tensor, before: Tensor) -> Tensor:
        """(B, C), of the pixels that had a class, from the counts of all pairs; 0 where the class is in neither."""
        width = self.num_classes + 2
        pairs = label_sums(now, self.num_classes, before=before).view(-1, width, width)
        both = pairs.diagonal(dim1=1, dim2=2)
        either = pairs[:, 1:-1].sum(1) + pairs.sum(2) - both  # now, before
        return self._of_classes(both.double() / either.clamp(min=1))

    def _mean_confidence(self, now: Tensor, confidence: Tensor | None) -> Tensor:
        """(B, C), 0 where the class is absent or nothing is known."""
        if confidence is None:
            return torch.zeros(len(now), self.num_classes, device=now.device)
        total = label_sums(now, self.num_classes, weights=confidence)
        return self._of_classes(total / label_sums(now, self.num_classes).clamp(min=1))

    def _of_classes(self, values: Tensor) -> Tensor:
        """(B, C + 2) of places -> (B, C) float32."""
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
        """Where the tables are; below 0 is as far outside as above the last, not the last but one."""
        rows = indices.to(self.iou.device).long()
        return torch.where(rows < 0, self.num_images, rows)


def _at_or_above_median(values: Tensor, median: str) -> Tensor:
    """(N, C) bool: positive, and at or above the median of the column's positive values."""
    counted = values > 0
    ordered = torch.where(counted, values, torch.inf).sort(dim=0).values
    number = counted.sum(0, keepdim=True)
    if median == "rounded":
        return counted & (values >= ordered.gather(0, (number / 2).round().long().clamp(max=len(values) - 1)))
    low = ordered.gather(0, ((number - 1) // 2).clamp(min=0))
    high = ordered.gather(0, (number // 2).clamp(max=len(values) - 1))
    return counted & (values >= (low.double() + high.double()) / 2)


def _subsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h, w): the nearest pixels."""
    for dim, wanted in ((1, size[0]), (2, size[1])):
        have = maps.shape[dim]
        if have != wanted:
            places = (2 * torch.arange(wanted, device=maps.device) + 1) * have // (2 * wanted)
            maps = maps.index_select(dim, places)
    return maps


def _check_like(value: Any, labels: Tensor, name: str) -> None:
    _checks.check_tensor(value, name)
    if value.shape != labels.shape:
        raise ValueError(f"`{name}`: expected (B, H, W) = {tuple(labels.shape)}, got {tuple(value.shape)}")
    _checks.check_device(value, labels, name)
