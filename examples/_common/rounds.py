"""A round of offline pseudo-labels: one pass over the target images for statistics, one for labels, on all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from _common.folders import Data
from _common.loading import in_order
from _common.run import Run
from selftrain_seg import PseudoLabels
from selftrain_seg.store import PseudoLabelStore, StoredRound


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


def thresholds_of(store: PseudoLabelStore, round: int, run: Run, estimate: Callable[[], Tensor]) -> Tensor:
    """Estimate a round's thresholds, or take those that an interrupted attempt was begun with."""
    kept = store.settings(round).thresholds if round in store.interrupted() else None
    return estimate() if kept is None else kept.to(run.device)


@torch.no_grad()
def gather(net: nn.Module, data: Data, run: Run, update: Callable[[Tensor], None]) -> None:
    """Call ``update(logits)`` for this rank's share of the target images.

    One image at a time: a convolution may round otherwise in a larger batch, and so on another number of ranks.
    """
    for images, _ in in_order(data.target, run, range(run.rank, len(data.target), run.world)):
        update(net(images))


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
            writer.add(names, select(net(images)))
        stored = writer.finish()
    run.say(f"round {round + 1}: {stored}")
    return stored


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
