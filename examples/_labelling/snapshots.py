"""Snapshots: the student labels all target images every so often, and classes with stable labels are found (TCR)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from _common.evaluation import ready_to_predict
from _common.progress import progress
from _common.run import Run
from _data.augmentation import mark_padding, whole_image
from _data.opening import Data
from torch import Tensor, nn

from _labelling.drawing import sampler_options
from _labelling.rounds import open_store, write_labels
from selftrain_seg.mining import ClassBalancedSampler, ClassIndex, ReliabilityBank
from selftrain_seg.selectors import select_hard
from selftrain_seg.store import StoredRound


def take_snapshot(net: nn.Module, data: Data, run: Run, bank: ReliabilityBank, stage: str, number: int) -> StoredRound:
    """Label all pixels of all target images, and find the classes of each image whose labels are stable.

    The bank compares the labels with those of the snapshot before. If the stage that trains on this snapshot has begun,
    the snapshot is only opened.
    """
    store = open_store(run, data, keep=() if number else ("confidence",))
    if run.has_begun(stage):
        return store.round(number)
    all_pixels = functools.partial(select_hard, thresholds=0.0)
    snapshot = write_labels(ready_to_predict(net, data, run), data, run, store, number, all_pixels)
    before = store.round(number - 1) if number else None
    share = range(run.rank, len(snapshot), run.world)
    for image in progress(share, f"comparing snapshot {number}", disable=not run.main):
        labels, confidence = snapshot.read(image)[:2]
        previous = None if before is None else before.labels(image)[None]
        bank.update(torch.tensor([image]), labels[None], confidence[None], previous=previous)
    bank.refresh(number * run.settings.refresh)
    if not bank.candidates.any():
        raise SystemExit(
            f"snapshot {number}: no class of any image has stable labels, so no image can be drawn. Either no pixel "
            "has a label, or all labels have changed. Start from a network trained on these classes (--init), or take "
            "snapshots more often (--refresh)"
        )
    return snapshot


def stable_labels(snapshot: StoredRound, bank: ReliabilityBank, name: str) -> Tensor:
    """Return an image's labels (H, W); classes whose labels are not stable are ignored."""
    return bank.filter(snapshot.labels(name)[None], torch.tensor([snapshot.names.index(name)]))[0]


def balanced_loaders(data: Data, run: Run, bank: ReliabilityBank, snapshot: StoredRound, number: int) -> list[Any]:
    """Return loaders of (target image, padding), and of donors, images to paste from, with their stable labels.

    Both draw images so that all stable classes come about equally often. The padding is as in ``mark_padding``.
    """
    settings = run.settings
    donors = data.target_with(functools.partial(stable_labels, snapshot, bank))
    moved = whole_image(settings.tile or data.target[0][0].shape[-2:], settings.train_resize)
    index = ClassIndex(snapshot.counts, snapshot.pixels)
    options = {"candidates": bank.candidates, **sampler_options(run, settings.refresh)}
    loaders = []
    for name, dataset, transform in (("target", data.target, mark_padding(moved)), ("donors", donors, moved)):
        sampler = ClassBalancedSampler(index, seed=run.seed(name, number), **options)
        loaders.append(run.loader(dataset, f"{name} {number}", transform, list(sampler)))
    return loaders
