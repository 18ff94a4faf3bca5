"""What a network is worth, with target labels and without."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from _study.world import Images, World, as_floats
from selftrain_seg import IGNORE_INDEX
from selftrain_seg.teachers import soft_neighbourhood_density

_AT_ONCE = 16  # images that go through the network at once
_SCORED = 20  # target images that scores without labels are taken from, about


@torch.no_grad()
def logits_of(net: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    if isinstance(net, nn.Module):
        net.eval()
    return torch.cat([net(as_floats(part)).float() for part in images.split(_AT_ONCE)])


def confusion(labels: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """(C, C) counts of pixels, rows the truth, where both have a class."""
    both = (truth != IGNORE_INDEX) & (labels != IGNORE_INDEX)
    return torch.bincount(truth[both] * num_classes + labels[both], minlength=num_classes**2).view(num_classes, -1)


def iou_of(counts: Tensor) -> Tensor:
    """(C,) in percent, NaN for classes that are in neither."""
    counts = counts.double()
    return 100 * counts.diagonal() / (counts.sum(0) + counts.sum(1) - counts.diagonal())


def measure(net: nn.Module, world: World, *, scores: bool = True) -> dict[str, Any]:
    """MIoU on the validation images, and with ``scores`` what can be known without target labels."""
    classes = len(world.classes)
    iou = iou_of(confusion(logits_of(net, world.val.images).argmax(dim=1), world.val.labels, classes))
    made = {"mIoU": float(iou.nanmean()), "iou": dict(zip(world.classes, iou.tolist(), strict=True))}
    if not scores:
        return made
    check = iou_of(confusion(logits_of(net, world.check.images).argmax(dim=1), world.check.labels, classes))
    logits = logits_of(net, world.target.images[:: max(len(world.target.images) // _SCORED, 1)])
    log_probs = logits.log_softmax(dim=1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=1).mean() / torch.tensor(float(classes)).log()
    generator = torch.Generator().manual_seed(0)
    density = statistics.mean(float(soft_neighbourhood_density(one[None], generator=generator)) for one in logits)
    shares = torch.bincount(logits.argmax(dim=1).flatten(), minlength=classes) / logits[:, 0].numel()
    return {
        **made,
        "restyled source": float(check.nanmean()),
        "restyled source, iou": dict(zip(world.classes, check.tolist(), strict=True)),
        "SND": density,
        "entropy": float(entropy),
        "predicted share": dict(zip(world.classes, shares.tolist(), strict=True)),
    }


def precision_on(net: nn.Module, images: Images, classes: int) -> Tensor:
    """(C,) precision of each predicted class; 0 for classes that are never predicted."""
    counts = confusion(logits_of(net, images.images).argmax(dim=1), images.labels, classes).double()
    return counts.diagonal() / counts.sum(0).clamp(min=1)
