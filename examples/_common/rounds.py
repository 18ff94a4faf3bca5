"""A round of offline pseudo-labels: one pass over the target images for statistics, one for labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from _data.opening import Data
from _reporting import warn_of_few_labels
from torch import Tensor, nn
from torch.utils.data import Dataset

from _common.evaluation import predict_labels, ready_to_predict
from _common.loading import in_blocks
from _common.progress import progress
from _common.run import Run
from selftrain_seg import PseudoLabels
from selftrain_seg.mining import ClassIndex, RareClassSampler, SmallClassCrop, classes_below, rare_classes
from selftrain_seg.store import PseudoLabelStore, StoredRound
from selftrain_seg.thresholds import PortionSchedule, source_subset


class Estimator(Protocol):
    """What thresholds are estimated with: ``ClassBalancedThreshold``, say."""

    def update(self, logits: Tensor) -> None:
        """Count a batch."""

    def compute(self) -> Tensor:
        """Return thresholds (C,)."""


def open_store(run: Run, data: Data, folder: str = "pseudo-labels", **settings: Any) -> PseudoLabelStore:
    """Open the pseudo-labels of a run."""
    label_map = data.label_map
    if run.settings.init is None and not getattr(run.settings, "warmup_steps", 0):
        run.say("without --init: the first labels are those of a network that has learnt nothing about these classes")
    about = {"classes": label_map.classes, "palette": label_map.palette, "keep": (), **settings}
    return PseudoLabelStore(run.out / folder, label_map.num_classes, **about)


def finished(store: PseudoLabelStore, number: int) -> StoredRound | None:
    """Open a round that an earlier attempt has finished; None where labels are missing or damaged."""
    if number not in store.rounds() or store.verify(number):
        return None
    return store.round(number)


def thresholds_of(store: PseudoLabelStore, number: int, run: Run, estimate: Callable[[], Tensor]) -> Tensor:
    """Estimate a round's thresholds, or take those that an earlier attempt was begun with."""
    exists = number in store.interrupted() or number in store.rounds()
    kept = store.settings(number).thresholds if exists else None
    return estimate() if kept is None else kept.to(run.device)


@torch.no_grad()
def estimate_thresholds(net: nn.Module, data: Data, run: Run, estimator: Estimator) -> Tensor:
    """One pass over the target images, shared by the processes; what they count is added up."""
    blocks = in_blocks(data.target, run)
    for images, _ in progress(blocks, "estimating thresholds", disable=not run.main):
        estimator.update(predict_labels(net, images, run))
    return estimator.compute()


@torch.no_grad()
def write_labels(
    net: nn.Module,
    data: Data,
    run: Run,
    store: PseudoLabelStore,
    number: int,
    select: Callable[[Tensor], PseudoLabels],
    **settings: Any,
) -> StoredRound:
    """Label the target images that are not labelled yet, each process its share; returns the complete round.

    ``settings`` go to ``store.write``; ``number`` counts from 0, as the store does.
    """
    with store.write(number, data.target.names, **settings) as writer:
        missing = set(writer.missing())
        for images, names in progress(
            in_blocks(data.target, run), f"labelling, round {number + 1}", disable=not run.main
        ):
            if missing & set(names):  # blocks stay whole: in smaller ones convolutions may round otherwise
                writer.add(names, select(predict_labels(net, images, run)))
        stored = writer.finish()
    run.say(f"round {number + 1}: {stored}")
    warn_of_few_labels(run, number + 1, stored)
    return stored


def label_target(
    net: nn.Module,
    data: Data,
    run: Run,
    store: PseudoLabelStore,
    stage: str,
    number: int,
    estimator: Estimator,
    select: Callable[[Tensor, Tensor], PseudoLabels],
    portion: float,
) -> StoredRound:
    """Label all target images: thresholds from one pass, labels from another; or open what an earlier attempt finished.

    Args:
        net: the network that labels, as it is when the round begins.
        data: with target images.
        run: with the settings of prediction.
        store: of the run.
        stage: that learns from these labels. If it has begun, the network is another by now.
        number: of the round, counted from 0.
        estimator: of the thresholds, of which the round keeps the portion.
        select: called with (logits, thresholds).
        portion: kept with the labels.
    """
    if run.has_begun(stage):  # the network has learnt from them
        return store.round(number)
    stored = finished(store, number)
    if stored is not None:
        return stored
    net = ready_to_predict(net, data, run)
    thresholds = thresholds_of(store, number, run, lambda: estimate_thresholds(net, data, run, estimator))
    kept = {"thresholds": thresholds, "portion": portion}
    return write_labels(net, data, run, store, number, lambda logits: select(logits, thresholds), **kept)


def source_order(settings: Any, length: int, number: int) -> list[int] | None:
    """Indices of the source images that a round uses (``--source-portion``, ``--source-redraw``); None for all."""
    if settings.source_portion is None:
        return None
    share = PortionSchedule(*settings.source_portion)(number)
    return source_subset(length, share, seed=settings.seed + number * settings.source_redraw).tolist()


def rare_class_order(data: Data, run: Run, temperature: float) -> list[int]:
    """Indices of the source images of ``--steps``, drawn so that those with rare classes come often."""
    settings, num_classes = run.settings, data.label_map.num_classes
    masks = progress(data.source.masks(), "classes of the source masks", disable=not run.main)
    sampler = RareClassSampler(
        ClassIndex.from_masks(masks, num_classes),
        temperature=temperature,
        num_samples=settings.steps * settings.accumulate * settings.batch,
        seed=run.seed("rare classes"),
        rank=0,  # the order of all processes; the loader shares it among them
        num_replicas=1,
    )
    return list(sampler)


def small_class_crop(stored: StoredRound, size: Sequence[int], rarest: bool = True) -> SmallClassCrop:
    """Crops around the small classes of a round, and (``rarest``) in images without any around its rarest ones.

    Classes that the network never predicts are left out: there is nothing of them to find.
    """
    counts = stored.predicted.sum(0)
    there = counts.nonzero()[:, 0]
    small, rare = classes_below(counts), there[rare_classes(counts[there], k=min(3, len(there)))]
    return SmallClassCrop(small[counts[small] > 0], size, fallback=rare if rarest else None)


class Labelled(Dataset[Any]):
    """Target images with the maps of a round: (image, labels, confidence), say.

    Args:
        images: names and images, ``Data.target``.
        stored: the round.
        fields: of ``stored.fields``, two or more.
    """

    def __init__(self, images: Dataset[Any], stored: StoredRound, fields: Sequence[str]) -> None:
        self.images, self.maps = images, stored.dataset(fields)

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image, name = self.images[index]
        return image, *self.maps[name]
