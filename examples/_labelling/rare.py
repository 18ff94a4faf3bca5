"""Rare classes of the source: which they are, and an order that draws their images more often."""

from __future__ import annotations

import json

import torch
from _common.loading import Readable
from _common.progress import progress
from _common.run import Run
from _data.opening import Data
from torch import Tensor

from _labelling.drawing import sampler_options
from selftrain_seg.mining import ClassIndex, RareClassSampler, classes_below


def source_index(data: Data, run: Run) -> ClassIndex:
    """Count the classes of each source mask. The first process counts; the others and resumed runs read its file."""
    path = run.out / "source-classes.pt"
    if run.main and not path.exists():
        masks = progress(Readable(data.source.masks()), "classes of the source masks")
        ClassIndex.from_masks(masks, data.label_map.num_classes).save(path)
    if run.world > 1:
        torch.distributed.barrier()
    return ClassIndex.load(path)


def rare_source_classes(data: Data, run: Run, share: float) -> Tensor:
    """Return the classes below a share of the labelled pixels in all source masks; none for a share of 0."""
    if share == 0:
        return torch.tensor([], dtype=torch.long)
    if run.settings.data == "folders":  # ``look_at_masks`` has counted them
        found = json.loads((run.out / "source-masks.json").read_text(encoding="utf-8"))
        counts = torch.tensor(list(found["pixels"].values()))
    else:
        counts = source_index(data, run).class_counts
    return classes_below(counts, share=share)


def rare_class_order(data: Data, run: Run, temperature: float) -> list[int]:
    """Draw the indices of source images for all ``--steps``, those with rare classes more often."""
    index, options = source_index(data, run), sampler_options(run, run.settings.steps)
    return list(RareClassSampler(index, temperature=temperature, seed=run.seed("rare classes"), **options))
