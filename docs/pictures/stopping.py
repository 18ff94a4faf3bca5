"""Scores of rounds of self-training, the best round, and the round after which a check stops."""

from __future__ import annotations

import copy
from typing import Any

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from pictures.scene import SIZE, Scene, logits_of
from pictures.style import BLUE, GREY, ORANGE, WIDTH
from pictures.training import as_floats, evaluate, reestimate_batchnorm, save
from selftrain_seg import IGNORE_INDEX
from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.restyle import restyled_confusion
from selftrain_seg.selectors import select_hard
from selftrain_seg.stopping import RoundCheck
from selftrain_seg.thresholds import ClassBalancedThreshold

ROUNDS, STEPS, BATCH, LEARNING_RATE = 4, 10, 3, 5e-4
PORTION, TOLERANCE, PATIENCE, HELD_OUT = 0.3, 0.5, 2, 20

Scores = list[dict[str, float]]


def draw(scene: Scene) -> Figure:
    """Draw the scores of all rounds, and shade those after which the check has stopped."""
    path = scene.cache / f"guide-stopping-{ROUNDS}-{STEPS}-{HELD_OUT}-{LEARNING_RATE}.pt"
    if not path.exists():
        save(_run(scene), path)
    scores: Scores = torch.load(path, weights_only=True)
    check = RoundCheck("restyled", tolerance=TOLERANCE, patience=PATIENCE)
    for round, found in enumerate(scores):
        check.record(round, found)
        verdict = check.verdict()
        if verdict.action in ("stop", "do not adapt"):
            break
    figure, axis = plt.subplots(figsize=(WIDTH, 4), layout="constrained")
    for name, label, colour, style in (
        ("restyled", "source restyled to the target, which the check sees", ORANGE, "-"),
        ("target", "target, which it does not see", BLUE, "--"),
    ):
        values = [found[name] for found in scores]
        axis.plot(values, color=colour, marker="o", linestyle=style, label=label)
        axis.plot(verdict.best, values[verdict.best], "o", markersize=14, fillstyle="none", color="black")
    if round < ROUNDS:
        axis.axvspan(round + 0.5, ROUNDS + 0.3, color=GREY, alpha=0.25, linewidth=0)
    axis.set_xticks(range(len(scores)))
    axis.set_xlabel("round")
    axis.set_ylabel("mIoU, %")
    axis.set_title(f"“{verdict.action}” after round {round}: keep round {verdict.best}", pad=12)
    figure.legend(loc="outside lower center", ncols=1)
    return figure


def _run(scene: Scene) -> Scores:
    """Adapt the network for all rounds, and score it before the first and after each."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    net = copy.deepcopy(scene.net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
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
        reestimate_batchnorm(net, scene.target)
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
