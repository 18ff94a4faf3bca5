"""mIoU on the target and on restyled source images, over the share of the target's statistics."""

from __future__ import annotations

import copy

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from pictures.scene import SIZE, Scene
from pictures.style import BLUE, ORANGE, WIDTH
from pictures.training import as_floats
from pictures.training import save as save_atomically
from selftrain_seg.batchnorm import choose_alpha, estimate_statistics
from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.restyle import restyled_confusion

HELD_OUT, BATCH = 40, 10


def draw(scene: Scene) -> Figure:
    """Draw both curves."""
    path = scene.cache / f"guide-batchnorm-{HELD_OUT}-{BATCH}.pt"
    if not path.exists():
        save_atomically(_measure(scene), path)
    curves = torch.load(path, weights_only=True)
    figure, axis = plt.subplots(figsize=(WIDTH, 4), layout="constrained")
    axis.plot(curves["alpha"], curves["target"], color=BLUE, marker="o", label="target")
    axis.plot(curves["alpha"], curves["restyled"], color=ORANGE, marker="o", label="source restyled to the target")
    axis.set_xlabel("alpha, the share of the target's statistics")
    axis.set_ylabel("mIoU, %")
    axis.legend(loc="lower right")
    return figure


def _measure(scene: Scene) -> dict[str, Tensor]:
    net = copy.deepcopy(scene.net)
    source, target = (
        estimate_statistics(net, [as_floats(images) for images in part.tensors[0].split(BATCH)])
        for part in (scene.source, scene.target)
    )
    images, labels = zip(*SyntheticStreets("source", "val", size=SIZE, length=HELD_OUT), strict=True)
    held_out = list(zip(torch.stack(images).split(BATCH), torch.stack(labels).split(BATCH), strict=True))
    styles = [as_floats(images) for images in scene.target.tensors[0].split(BATCH)]
    val = [
        (as_floats(images), labels)
        for images, labels in zip(*(tensor.split(BATCH) for tensor in scene.val.tensors), strict=True)
    ]

    def restyled(net: torch.nn.Module) -> Tensor:
        return 100 * restyled_confusion(net, held_out, styles, num_classes=13).miou

    def truth(net: torch.nn.Module) -> Tensor:
        return 100 * restyled_confusion(net, val, styles, num_classes=13, restyle=lambda images, _: images).miou

    scores = [choose_alpha(net, source, target, score).scores for score in (truth, restyled)]
    return {
        "alpha": torch.tensor(list(scores[0])),
        "target": torch.tensor(list(scores[0].values())),
        "restyled": torch.tensor(list(scores[1].values())),
    }
