"""Scores of rounds of self-training, the best round, and the round after which a check stops."""

from __future__ import annotations

import copy
from typing import Any

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from pictures.scene import SIZE, Scene, logits_of
from pictures.style import BLUE, GREY, ORANGE, WIDTH
from pictures.training import as_floats, evaluate, save
from selftrain_seg import IGNORE_INDEX
from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.restyle import restyled_confusion
from selftrain_seg.selectors import select_hard
from selftrain_seg.stopping import RoundCheck
from selftrain_seg.thresholds import ClassBalancedThreshold

ROUNDS, STEPS, BATCH = 4, 12, 3
LEARNING_RATES = {"small steps": 5e-4, "large steps": 1e-2}
PORTION, TOLERANCE, PATIENCE, HELD_OUT = 0.3, 0.5, 2, 20

Scores = list[dict[str, float]]


def draw(scene: Scene) -> Figure:
    """Draw a run in which the check stops after a gain, and one in which it keeps the first network."""
    runs = {name: _kept_run(scene, rate) for name, rate in LEARNING_RATES.items()}
    figure, axes = plt.subplots(1, len(runs), figsize=(WIDTH, 4.2), sharey=True, layout="constrained")
    for axis, (name, scores) in zip(axes, runs.items(), strict=True):
        _draw_run(axis, name, scores)
    axes[0].set_ylabel("mIoU, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def _kept_run(scene: Scene, rate: float) -> Scores:
    path = scene.cache / f"guide-stopping-{ROUNDS}-{STEPS}-{HELD_OUT}-{rate}.pt"
    if not path.exists():
        save(_run(scene, rate), path)
    scores: Scores = torch.load(path, weights_only=True)
    return scores


def _draw_run(axis: Axes, name: str, scores: Scores) -> None:
    check = RoundCheck("restyled", tolerance=TOLERANCE, patience=PATIENCE)
    for round, found in enumerate(scores):
        check.record(round, found)
        verdict = check.verdict()
        if verdict.action in ("stop", "do not adapt"):
            break
    rounds = range(len(scores))
    restyled, target = ([found[key] for found in scores] for key in ("restyled", "target"))
    axis.plot(rounds, restyled, color=ORANGE, marker="o", label="restyled source")
    axis.plot(rounds, target, color=BLUE, marker="o", linestyle="--", label="target")
    for line in (restyled, target):
        axis.plot(verdict.best, line[verdict.best], "o", markersize=14, fillstyle="none", color="black")
    axis.axvspan(round, len(scores) - 0.7, color=GREY, alpha=0.25, linewidth=0)
    axis.set_xticks(rounds)
    axis.set_xlabel("round")
    axis.set_title(f"{name}: “{verdict.action}”\nafter round {round}, keep round {verdict.best}")


def _run(scene: Scene, rate: float) -> Scores:
    """Adapt the network for all rounds, and score it before the first and after each."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    net = copy.deepcopy(scene.net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-2)
    images, labels = zip(*SyntheticStreets("source", "val", size=SIZE, length=HELD_OUT), strict=True)
    held_out = [(as_floats(255 * image[None]), label[None]) for image, label in zip(images, labels, strict=True)]
    styles = [as_floats(part) for part in scene.target.tensors[0].split(10)]

    def score() -> dict[str, float]:
        restyled = restyled_confusion(net, held_out, styles, num_classes=SyntheticStreets.num_classes)
        return {"restyled": 100 * float(restyled.miou), "target": evaluate(net, scene.val)}

    scores = [score()]
    for _ in range(ROUNDS):
        logits = logits_of(net.eval(), scene.target.tensors[0])
        kc = ClassBalancedThreshold(SyntheticStreets.num_classes, PORTION)
        kc.update(logits)
        pseudo = select_hard(logits, kc.compute()).labels
        _train(net, optimizer, (scene.source.tensors, (scene.target.tensors[0], pseudo)), generator)
        scores.append(score())
    return scores


def _train(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    domains: tuple[Any, ...],
    generator: torch.Generator,
) -> None:
    net.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        for images, labels in domains:
            chosen = torch.randint(len(images), (BATCH,), generator=generator)
            _loss(net(as_floats(images[chosen])), labels[chosen]).backward()
        optimizer.step()


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels.long(), ignore_index=IGNORE_INDEX)
