"""A round of offline pseudo-labels: one pass over the target images for statistics, one for labels, on all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from _common.evaluation import Score, predict, visible
from _common.folders import Data
from _common.loading import in_order
from _common.run import Run
from selftrain_seg import IGNORE_INDEX, PseudoLabels
from selftrain_seg.mining import SmallClassCrop, classes_below, rare_classes
from selftrain_seg.store import PseudoLabelStore, StoredRound
from selftrain_seg.visualize import record_picture, record_round, selection_map

_FEW = 0.001  # share of selected pixels, below which a round is most likely a mistake


def open_store(run: Run, data: Data, folder: str = "pseudo-labels", **settings: Any) -> PseudoLabelStore:
    """Open the pseudo-labels of a run."""
    label_map = data.label_map
    if run.args.init is None and not getattr(run.args, "warmup_steps", 0):
        run.say("without --init: the first labels are those of a network that has learnt nothing about these classes")
    return PseudoLabelStore(
        run.out / folder,
        label_map.num_classes,
        classes=label_map.classes,
        palette=label_map.palette,
        **{"keep": (), **settings},
    )


def finished(store: PseudoLabelStore, round: int) -> StoredRound | None:
    """Open a round that an earlier attempt has finished; None where labels are missing or damaged."""
    if round not in store.rounds() or store.verify(round):
        return None
    return store.round(round)


def thresholds_of(store: PseudoLabelStore, round: int, run: Run, estimate: Callable[[], Tensor]) -> Tensor:
    """Estimate a round's thresholds, or take those that an earlier attempt was begun with."""
    begun = round in store.interrupted() or round in store.rounds()
    kept = store.settings(round).thresholds if begun else None
    return estimate() if kept is None else kept.to(run.device)


@torch.no_grad()
def gather(net: nn.Module, data: Data, run: Run, update: Callable[[Tensor], None]) -> None:
    """Call ``update(logits)`` for this rank's share of the target images.

    One image at a time: a convolution may round otherwise in a larger batch, and so on another number of ranks.
    """
    for images, _ in in_order(data.target, run, range(run.rank, len(data.target), run.world)):
        update(predict(net, images, run))


@torch.no_grad()
def write_labels(
    net: nn.Module,
    data: Data,
    run: Run,
    store: PseudoLabelStore,
    round: int,
    select: Callable[[Tensor], PseudoLabels],
    **settings: Any,
) -> StoredRound:
    """Label the target images that are not labelled yet, each rank its share; returns the complete round."""
    places = {name: place for place, name in enumerate(data.target.names)}
    with store.write(round, data.target.names, **settings) as writer:
        mine = [places[name] for name in writer.missing()[run.rank :: run.world]]
        for images, names in in_order(data.target, run, mine):
            writer.add(names, select(predict(net, images, run)))
        stored = writer.finish()
    run.say(f"round {round + 1}: {stored}")
    warn_of_few(run, round, stored)
    return stored


def warn_of_few(run: Run, round: int, stored: StoredRound) -> None:
    """Warn of a round with next to no labels, counted from 0: there is nothing to learn from it."""
    if stored.selected_share < _FEW:
        run.say(
            f"warning: round {round + 1} selected only {100 * stored.selected_share:.3g} % of the target's pixels: "
            "start from a network that knows the classes (--init), or select more"
        )


def note_round(
    run: Run,
    data: Data,
    round: int,
    *,
    score: Score | None = None,
    stored: StoredRound | None = None,
    thresholds: Tensor | None = None,
    group: str = "",
) -> None:
    """Leave what the report shows of a round, counted from 1: its IoU; how much of its labels is right, and where.

    Thresholds and shares it finds in the store, but for thresholds that are not kept there. The truth of the target
    images, where it lies beside them, is seen by nothing but this.
    """
    if not run.main:
        return
    precision = None if stored is None else _precision(run, data, round, stored, group)
    values = {"thresholds": thresholds, "precision": precision, "iou": None if score is None else score.iou}
    record_round(run.out, round, classes=data.label_map.classes, group=group, **values)


def _precision(run: Run, data: Data, round: int, stored: StoredRound, group: str) -> Tensor | None:
    """Right pixels of those labelled, of each class, on up to 50 images; a picture of the first three."""
    if not data.has_truth:
        return None
    try:
        target = data.target_with(True)
    except (OSError, ValueError):  # there is no truth
        return None
    counts = torch.zeros(2, data.label_map.num_classes, dtype=torch.int64)
    shown: list[tuple[Tensor, Tensor, Tensor]] = []
    for place in range(0, len(stored), -(-len(stored) // 50)):
        try:
            (image, truth), labels = target[place], stored.labels(place)
        except (OSError, ValueError) as error:  # training does not need it
            run.say(f"no precision of round {round}: {error}")
            return None
        known = (labels != IGNORE_INDEX) & (truth != IGNORE_INDEX)
        for row, pixels in enumerate((known, known & (labels == truth))):
            counts[row] += labels[pixels].bincount(minlength=counts.shape[1])
        if len(shown) < 3 and (not shown or image.shape == shown[0][0].shape):
            shown.append((image.as_subclass(Tensor), labels, truth.as_subclass(Tensor)))
    images, labels, truth = (torch.stack(part) for part in zip(*shown, strict=True))
    name = f"round {round} selection {group}".strip()
    record_picture(run.out, name, selection_map(visible(images), labels, truth=truth))
    return counts[1] / counts[0]


def small_class_crop(stored: StoredRound, size: Sequence[int]) -> SmallClassCrop:
    """Crops around the small classes of a round, and in images without any around its rarest ones.

    Classes that the network never predicts are left out: there is nothing of them to find.
    """
    counts = stored.predicted.sum(0)
    there = counts.nonzero()[:, 0]
    small, rare = classes_below(counts), there[rare_classes(counts[there], k=min(3, len(there)))]
    return SmallClassCrop(small[counts[small] > 0], size, fallback=rare)


class Labelled(Dataset[Any]):
    """Target images with several maps of a round: (image, labels, confidence), say.

    Args:
        images: names and images, ``Data.target``.
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
