"""IoU of each class between two snapshots' labels of two images of 512 x 1024, 19 classes: TCR's measure.

"published style" loops over images and classes and takes the intersection and the union of boolean masks.
"confusion matrix" counts pairs of classes in NumPy, image by image. "floor" compares the two label maps once.
Labels are bytes, as read from files, and int64, as selected.
"""

from __future__ import annotations

import numpy as np
import torch

from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.mining import ReliabilityBank
from tests.benchmarks._harness import Report

BATCH, CLASSES, SIZE = 2, 19, (512, 1024)


def iou_published(before, now):
    out = np.zeros((len(now), CLASSES))
    for image in range(len(now)):
        for c in range(CLASSES):
            one, other = before[image] == c, (now[image] == c) & (before[image] < CLASSES)  # others are left out
            union = np.logical_or(one, other).sum()
            if union:
                out[image, c] = np.logical_and(one, other).sum() / union
    return out


def iou_matrix(before, now):
    out = np.zeros((len(now), CLASSES))
    for image in range(len(now)):
        valid = (before[image] < CLASSES) & (now[image] < CLASSES)
        pairs = np.bincount(CLASSES * before[image][valid].astype(int) + now[image][valid], minlength=CLASSES**2)
        pairs = pairs.reshape(CLASSES, CLASSES)
        both = pairs.diagonal()
        out[image] = both / np.maximum(pairs.sum(0) + pairs.sum(1) - both, 1)
    return out


def run(report: Report, *, rounds: int) -> None:
    streets = SyntheticStreets("target", "train", size=SIZE, length=BATCH)
    labels = torch.stack([streets[image][1] for image in range(BATCH)])
    before = torch.where(torch.rand(labels.shape) < 0.2, 255, labels)
    now = torch.where(torch.rand(labels.shape) < 0.2, 255, labels.roll((3, 5), (1, 2)))
    confidence = torch.rand(labels.shape)
    bank = ReliabilityBank(BATCH, CLASSES)
    indices = torch.arange(BATCH)
    bank.update(indices, now, previous=before)
    bank.refresh(0)
    assert np.allclose(bank.iou, iou_published(before.numpy(), now.numpy()), atol=1e-6)

    for kind, dtype in (("uint8", torch.uint8), ("int64", torch.int64)):
        old, new = before.to(dtype), now.to(dtype)
        host = old.numpy(), new.numpy()
        measured = report.compare(
            f"IoU per image, {kind} labels",
            {
                "published style": lambda host=host: iou_published(*host),
                "confusion matrix": lambda host=host: iou_matrix(*host),
                "ReliabilityBank.update": lambda old=old, new=new: bank.update(indices, new, previous=old),
                "with confidence": lambda old=old, new=new: bank.update(indices, new, confidence, previous=old),
                "floor": lambda old=old, new=new: (old == new).sum(),
            },
            rounds=rounds,
        )
        report.target(
            f"per-image per-class IoU, {kind} labels",
            measured,
            "ReliabilityBank.update",
            "published style",
            faster=10,
            floor="floor",
        )
