"""Scores of a network, with and without target labels."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from _study.world import Images, World, as_floats
from selftrain_seg.restyle import ConfusionMatrix, ConfusionSummary
from selftrain_seg.teachers import soft_neighbourhood_density

_BATCH = 16  # images per batch
_SCORED = 20  # approximate number of target images for scores without labels


@torch.no_grad()
def logits_of(net: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the logits of uint8 images, in evaluation mode."""
    if isinstance(net, nn.Module):
        net.eval()
    return torch.cat([net(as_floats(part)).float() for part in images.split(_BATCH)])


def score(net: Callable[[Tensor], Tensor], images: Images, classes: int) -> ConfusionSummary:
    """Compare predictions with the true labels."""
    matrix = ConfusionMatrix(classes)
    for part, labels in zip(images.images.split(_BATCH), images.labels.split(_BATCH), strict=True):
        matrix.update(logits_of(net, part), labels)
    return matrix.compute()


def measure(net: nn.Module, world: World, *, scores: bool = True) -> dict[str, Any]:
    """Return the mIoU on the validation images, and with ``scores`` the scores that need no target labels."""
    classes = len(world.classes)
    truth = score(net, world.val, classes)
    found = {"mIoU": 100 * float(truth.miou), "iou": dict(zip(world.classes, (100 * truth.iou).tolist(), strict=True))}
    if not scores:
        return found
    check = score(net, world.check, classes)
    logits = logits_of(net, world.target.images[:: max(len(world.target.images) // _SCORED, 1)])
    log_probs = logits.log_softmax(dim=1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=1).mean() / torch.tensor(float(classes)).log()
    generator = torch.Generator().manual_seed(0)
    density = statistics.mean(float(soft_neighbourhood_density(one[None], generator=generator)) for one in logits)
    shares = torch.bincount(logits.argmax(dim=1).flatten(), minlength=classes) / logits[:, 0].numel()
    return {
        **found,
        "restyled source": 100 * float(check.miou),
        "restyled source, iou": dict(zip(world.classes, (100 * check.iou).tolist(), strict=True)),
        "restyled source, histograms": 100 * float(score(net, world.check_histograms, classes).miou),
        "SND": density,
        "entropy": float(entropy),
        "predicted share": dict(zip(world.classes, shares.tolist(), strict=True)),
    }
