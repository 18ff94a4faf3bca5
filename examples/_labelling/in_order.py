"""Labelling in order: the thresholds of each image depend on the images before it (IAST)."""

from __future__ import annotations

import math

import torch
from _common.evaluation import predict_labels, ready_to_predict
from _common.loading import in_blocks
from _common.progress import progress
from _common.run import Run
from _data.opening import Data
from _reporting import warn_of_few_labels
from torch import nn

from selftrain_seg.selectors import InstanceAdaptiveSelector
from selftrain_seg.store import PseudoLabelStore, StoredRound


@torch.no_grad()
def label_in_order(
    net: nn.Module,
    data: Data,
    run: Run,
    store: PseudoLabelStore,
    stage: str,
    number: int,
    selector: InstanceAdaptiveSelector,
    portion: float,
) -> StoredRound:
    """Label the target images in the order of their names, or open the round if its stage has begun.

    An interrupted pass starts again from the first image, since its thresholds depend on all images. It would write the
    labels that are already there, so the store keeps them.

    Args:
        net: the network that makes the labels.
        data: provides the target images.
        run: its settings say how images are predicted.
        store: the run's pseudo-labels.
        stage: the training stage that uses the labels.
        number: the round, counted from 0.
        selector: makes pseudo-labels from logits; its thresholds start anew.
        portion: the portion of pixels that the selector selects.
    """
    if run.has_begun(stage):
        return store.round(number)
    selector.portion = portion
    selector.reset()
    net = ready_to_predict(net, data, run)
    names, size = data.target.names, 1 if selector.per == "image" else 2
    blocks = in_blocks(data.target, run, size)
    with store.write(number, names, portion=portion) as writer:
        for _ in progress(range(math.ceil(len(names) / size / run.world)), "labelling", disable=not run.main):
            images, block_names = next(blocks, (None, ()))
            if images is None:  # this process has no image left, but takes part in the average of the thresholds
                selector(torch.zeros(0, selector.num_classes, 1, 1, device=run.device))
            else:
                writer.add(block_names, selector(predict_labels(net, images, run)))
        stored = writer.finish()
    run.say(f"round {number + 1}: {stored}, θ {selector.thresholds.min():.2f} to {selector.thresholds.max():.2f}")
    warn_of_few_labels(run, number + 1, stored)
    return stored
