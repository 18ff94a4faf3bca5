"""Pictures for the gallery, each by one call of ``selftrain_seg.visualize``."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from pictures.scene import Scene, logits_of
from selftrain_seg.confidence import top_confidence
from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.mining import class_mix, mine_crops, rare_classes
from selftrain_seg.selectors import select_reweighted
from selftrain_seg.thresholds import ClassBalancedThreshold
from selftrain_seg.visualize import confidence_map, crop_sheet, image_sheet, mixing_sheet, selection_map

SHOWN = [30, 5]


def predictions(scene: Scene) -> Figure:
    """Images beside what the network predicts and what is true."""
    images, truth = (tensor[SHOWN] for tensor in scene.val.tensors)
    columns = {"image": images, "prediction": logits_of(scene.net, images).argmax(dim=1), "truth": truth.long()}
    return image_sheet(columns, palette=SyntheticStreets.palette, classes=SyntheticStreets.classes)


def confidence(scene: Scene) -> Figure:
    """How sure the network is, where."""
    images = scene.val.tensors[0][SHOWN]
    top = top_confidence(logits_of(scene.net, images))
    return confidence_map(top.log_confidence.exp(), images=images)


def selection(scene: Scene) -> Figure:
    """What class-balanced thresholds select, and what of it is wrong."""
    images, truth = (tensor[SHOWN] for tensor in scene.val.tensors)
    return selection_map(images, _labels(scene, images), truth=truth.long())


def crops(scene: Scene) -> Figure:
    """Crops around rare classes."""
    images, labels = (tensor[SHOWN] for tensor in scene.source.tensors)
    counts = torch.bincount(scene.source.tensors[1].flatten().long(), minlength=256)[: SyntheticStreets.num_classes]
    rare = rare_classes(counts, k=3)
    generator = torch.Generator().manual_seed(2)
    corners = mine_crops(labels.long(), rare, (64, 128), chance=1.0, generator=generator)
    return crop_sheet(images, corners, (64, 128), labels=labels.long(), classes=rare)


def mixing(scene: Scene) -> Figure:
    """Classes of a source image pasted onto a target image with pseudo-labels."""
    images = scene.val.tensors[0][SHOWN] / 255
    labels = _labels(scene, scene.val.tensors[0][SHOWN])
    source = (scene.source.tensors[0][SHOWN] / 255, scene.source.tensors[1][SHOWN].long())
    mixed = class_mix(images, labels, source=source, generator=torch.Generator().manual_seed(1))
    return mixing_sheet(images, labels, mixed, SyntheticStreets.palette, classes=SyntheticStreets.classes)


def _labels(scene: Scene, images: torch.Tensor) -> torch.Tensor:
    kc = ClassBalancedThreshold(SyntheticStreets.num_classes, portion=0.4)
    for part in logits_of(scene.net, scene.target.tensors[0]).split(10):
        kc.update(part)
    return select_reweighted(logits_of(scene.net, images), kc.compute()).labels
