"""A discriminator of the network's outputs, and the adversarial losses of IAST's warm-up."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F


def discriminator(num_classes: int, width: int) -> nn.Sequential:
    """Build a network from probabilities (B, C, H, W) to scores at 1/32 of the size: 1 for source, 0 for target."""
    widths, layers = (num_classes, width, 2 * width, 4 * width, 8 * width), []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, stride=2, padding=1))


def adversarial_losses(
    judge: nn.Module, wrapped: nn.Module, source_logits: Tensor, target_logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the network's loss for fooling the discriminator, and the discriminator's own loss.

    One backward pass may go through both: each loss has gradients for one of the two only.

    Args:
        judge: the discriminator.
        wrapped: the same, wrapped by ``run.prepare``.
        source_logits: of the network.
        target_logits: of the network.
    """
    from_source, from_target = source_logits.softmax(dim=1), target_logits.softmax(dim=1)
    fixed = {name: parameter.detach() for name, parameter in judge.named_parameters()}
    scores = functional_call(judge, fixed, (from_target,))
    fooling = F.mse_loss(scores, torch.ones_like(scores))
    ones, zeros = wrapped(from_source.detach()), wrapped(from_target.detach())
    return fooling, F.mse_loss(ones, torch.ones_like(ones)) + F.mse_loss(zeros, torch.zeros_like(zeros))
