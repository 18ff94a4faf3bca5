"""A student and its averages while it learns from one of them."""

from __future__ import annotations

import copy

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassJaccardIndex

from pictures.scene import Scene
from pictures.style import BLUE, GREEN, GREY, ORANGE, WIDTH
from pictures.training import as_floats, jitter, save
from selftrain_seg.losses import cross_entropy
from selftrain_seg.mining import class_mix
from selftrain_seg.selectors import select_fixed
from selftrain_seg.teachers import MeanTeacher, parameter_distance

STEPS, EVERY, BATCH, IMAGES = 200, 10, 2, 24
MOMENTA = {0.9: ORANGE, 0.99: BLUE, 0.999: GREEN}
LABELLING = 0.99


def draw(scene: Scene) -> Figure:
    """Draw mIoU on the target above, and how far the teachers are from the student below."""
    path = scene.cache / f"guide-teachers-{STEPS}-{EVERY}-{BATCH}-{IMAGES}.pt"
    if not path.exists():
        save(_train(scene), path)
    curves = torch.load(path, weights_only=True)
    steps = range(0, STEPS + 1, EVERY)
    figure, (above, below) = plt.subplots(2, 1, figsize=(WIDTH, 6.8), height_ratios=[3, 2], layout="constrained")
    above.plot(steps, curves["iou"][0], color=GREY, label="student")
    for row, (momentum, colour) in enumerate(MOMENTA.items(), start=1):
        above.plot(steps, curves["iou"][row], color=colour, label=f"momentum {momentum}")
        below.plot(steps, curves["distance"][row - 1], color=colour)
    above.set_ylabel("target mIoU, %")
    below.set_ylabel("parameter_distance")
    below.set_xlabel("step")
    above.legend(loc="lower center", ncols=2, fontsize=11)
    return figure


def _train(scene: Scene) -> dict[str, Tensor]:
    student = copy.deepcopy(scene.net).train()
    teachers = {momentum: MeanTeacher(student, momentum=momentum, train_mode=True) for momentum in MOMENTA}
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(0)
    iou, distance = [], []
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            iou.append([_evaluate(net, scene) for net in (student, *(teacher.model for teacher in teachers.values()))])
            distance.append([float(parameter_distance(teacher.model, student)) for teacher in teachers.values()])
        source, labels = scene.source[torch.randint(len(scene.source), (BATCH,), generator=generator)]
        target, _ = scene.target[torch.randint(len(scene.target), (BATCH,), generator=generator)]
        source, target, labels = as_floats(source), as_floats(target), labels.long()
        pseudo = select_fixed(teachers[LABELLING](target), threshold=0.9, weigh_by="batch")
        mixed = class_mix(
            target,
            pseudo.labels,
            pixel_weight=pseudo.pixel_weight,
            source=(source, labels),
            generator=generator,
        )
        loss = F.cross_entropy(student(jitter(source)), labels, ignore_index=255)
        logits = student(jitter(mixed.images))
        loss = loss + cross_entropy(logits, mixed.labels, pixel_weight=mixed.pixel_weight, normalize="all")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for teacher in teachers.values():
            teacher.update(student)
    return {"iou": torch.tensor(iou).T, "distance": torch.tensor(distance).T}


@torch.no_grad()
def _evaluate(net: nn.Module, scene: Scene) -> float:
    """MIoU on the first validation images, BatchNorm with their own statistics."""
    images, labels = (tensor[:IMAGES] for tensor in scene.val.tensors)
    metric = MulticlassJaccardIndex(13, average=None, ignore_index=255)
    metric.update(copy.deepcopy(net).train()(as_floats(images)).argmax(dim=1), labels.long())
    return 100 * float(metric.compute().nanmean())
