"""How hard each loss pulls at the logit of its label."""

from __future__ import annotations

from collections.abc import Callable

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from pictures.scene import Scene
from pictures.style import BLUE, GREEN, ORANGE, PINK, RED, WIDTH
from selftrain_seg.losses import cross_entropy, dynamic_loss, mrent_loss, mrkld_loss, mrl2_loss, symmetric_loss

NUM_CLASSES = 19


def draw(_: Scene) -> Figure:
    """Draw the negative gradient at the label's logit over p_y, the other classes sharing the rest evenly."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(WIDTH, 8.2), layout="constrained")
    for name, loss, colour in (
        ("cross_entropy", cross_entropy, "black"),
        ("dynamic_loss, γ = 1", lambda z, y: dynamic_loss(z, y, gamma=1.0), BLUE),
        ("dynamic_loss, γ = 5", lambda z, y: dynamic_loss(z, y, gamma=5.0), GREEN),
        ("symmetric_loss", symmetric_loss, ORANGE),
    ):
        probability = torch.linspace(0.002, 0.998, 250)
        above.plot(probability, _pull(loss, probability), color=colour, label=name)
    above.set_title("labels that the network doubts")
    for name, loss, colour in (
        ("cross_entropy", cross_entropy, "black"),
        ("mrkld_loss", mrkld_loss, BLUE),
        ("mrent_loss", mrent_loss, RED),
        ("mrl2_loss", mrl2_loss, PINK),
    ):
        probability = torch.linspace(0.6, 0.9995, 400)
        below.plot(probability, _pull(loss, probability), color=colour, label=name)
    below.axhline(0, color="black", linewidth=0.8)
    below.set_title("how sure a network may become, reg_weight 0.1")
    for axis in (above, below):
        axis.set_xlabel("probability $p_y$ of the label")
        axis.set_ylabel("pull towards the label")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=11)
    return figure


def _pull(loss: Callable[[Tensor, Tensor], Tensor], probability: Tensor) -> Tensor:
    """-∂loss/∂z_y for each p_y (N,)."""
    rest = ((1 - probability) / (NUM_CLASSES - 1)).expand(NUM_CLASSES - 1, -1)
    logits = torch.cat([probability[None], rest]).log().T.reshape(-1, NUM_CLASSES, 1, 1).double().requires_grad_()
    labels = torch.zeros(len(probability), 1, 1, dtype=torch.long)
    (gradient,) = torch.autograd.grad(len(probability) * loss(logits, labels), logits)
    return -gradient[:, 0, 0, 0]
