"""Rounds of offline pseudo-labels: one pass over the target images estimates thresholds, a second one labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from _common.evaluation import predict_labels, ready_to_predict
from _common.loading import in_blocks
from _common.progress import progress
from _common.run import Run
from _data.opening import Data
from _reporting import warn_of_few_labels
from torch import Tensor, nn
from torch.utils.data import Dataset

from selftrain_seg import PseudoLabels
from selftrain_seg.mining import SmallClassCrop, classes_below, rare_classes
from selftrain_seg.store import PseudoLabelStore, StoredRound


class Estimator(Protocol):
    """An estimator of thresholds, such as ``ClassBalancedThreshold``."""

    def update(self, logits: Tensor) -> None:
        """Count a batch."""

    def compute(self) -> Tensor:
        """Return thresholds (C,)."""


def open_store(run: Run, data: Data, folder: str = "pseudo-labels", **settings: Any) -> PseudoLabelStore:
    """Open the store of a run's pseudo-labels; ``settings`` are passed to ``PseudoLabelStore``."""
    label_map = data.label_map
    if run.settings.init is None and not getattr(run.settings, "warmup_steps", 0):
        run.say("without --init: the network that makes the first labels has not been trained on these classes")
    settings = {"classes": label_map.classes, "palette": label_map.palette, "keep": (), **settings}
    return PseudoLabelStore(run.out / folder, label_map.num_classes, **settings)


def finished(store: PseudoLabelStore, number: int) -> StoredRound | None:
    """Open a round that is complete; return None if labels are missing or damaged."""
    if number not in store.rounds() or store.verify(number):
        return None
    return store.round(number)


def thresholds_of(store: PseudoLabelStore, number: int, run: Run, estimate: Callable[[], Tensor]) -> Tensor:
    """Estimate a round's thresholds, or read those that an interrupted attempt has stored."""
    exists = number in store.interrupted() or number in store.rounds()
    kept = store.settings(number).thresholds if exists else None
    return estimate() if kept is None else kept.to(run.device)


@torch.no_grad()
def estimate_thresholds(net: nn.Module, data: Data, run: Run, estimator: Estimator) -> Tensor:
    """Estimate thresholds in one pass over the target images. Each process counts a share; the counts are summed."""
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
    """Label the target images that have no labels yet, each process a share, and return the complete round.

    ``number`` counts rounds from 0, as the store does; ``settings`` are passed to ``store.write``.
    """
    with store.write(number, data.target.names, **settings) as writer:
        missing = set(writer.missing())
        for images, names in progress(
            in_blocks(data.target, run), f"labelling, round {number + 1}", disable=not run.main
        ):
            if missing & set(names):  # whole blocks only: convolutions may round otherwise in smaller ones
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
    """Label all target images with thresholds estimated from all of them, or open the round if it is finished.

    Args:
        net: the network that makes the labels.
        data: provides the target images.
        run: its settings say how images are predicted.
        store: the run's pseudo-labels.
        stage: the training stage that uses the labels. Once it has begun, the network is no longer the one that made
            them, so the round is only opened.
        number: the round, counted from 0.
        estimator: estimates the thresholds.
        select: makes pseudo-labels from (logits, thresholds).
        portion: the portion that the estimator selects; stored with the labels.
    """
    if run.has_begun(stage):
        return store.round(number)
    stored = finished(store, number)
    if stored is not None:
        return stored
    net = ready_to_predict(net, data, run)
    thresholds = thresholds_of(store, number, run, lambda: estimate_thresholds(net, data, run, estimator))
    kept = {"thresholds": thresholds, "portion": portion}
    return write_labels(net, data, run, store, number, lambda logits: select(logits, thresholds), **kept)


def small_class_crop(stored: StoredRound, size: Sequence[int], rarest: bool = True) -> SmallClassCrop:
    """Crop around the small classes of a round; with ``rarest``, images without any around the three rarest classes.

    Classes that the network never predicts are left out, as no image has labels of them.
    """
    counts = stored.predicted.sum(0)
    predicted = counts.nonzero()[:, 0]
    small, rare = classes_below(counts), predicted[rare_classes(counts[predicted], k=min(3, len(predicted)))]
    return SmallClassCrop(small[counts[small] > 0], size, fallback=rare if rarest else None)


class Labelled(Dataset[Any]):
    """Target images with the maps of a round, such as (image, labels, confidence).

    Args:
        images: pairs of an image and its name, such as ``Data.target``.
        stored: the round.
        fields: two or more of ``stored.fields``.
    """

    def __init__(self, images: Dataset[Any], stored: StoredRound, fields: Sequence[str]) -> None:
        self.images, self.maps = images, stored.dataset(fields)

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image, name = self.images[index]
        return image, *self.maps[name]
