"""Gradients of pseudo-labels beside those of the truth."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from _study.labels import know, make_labels
from _study.network import set_mode
from _study.world import World, as_floats, strong_view
from selftrain_seg import IGNORE_INDEX
from selftrain_seg.losses import cross_entropy
from selftrain_seg.mining import class_mix

# (how labels are made, how images are seen)
_PLAIN = ("re-weighted", "global", "floor", "all", "all interiors", "all borders", "re-weighted, trusted classes")
_PLAIN += ("as trusted", "soft", "right ones of re-weighted", "truth where re-weighted", "truth")
PROBES = (
    *((how, "plain") for how in _PLAIN),
    *((how, "strong") for how in ("re-weighted", "floor", "all", "truth")),
    *((how, "pasted") for how in ("re-weighted", "floor", "all", "as trusted", "truth")),
)


def gradients(net: nn.Module, views: Tensor, targets: dict[str, tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
    """Gradients of the mean loss over a set of images, for several labels of it, each as one vector."""
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    sums = {name: torch.zeros(sum(p.numel() for p in parameters)) for name in targets}
    for place in trange(0, len(views), 8, desc="gradients", leave=False, disable=None):
        part = slice(place, place + 8)
        logits = net(as_floats(views[part]))
        for name, (labels, weight) in targets.items():
            one = None if weight is None else weight[part]
            loss = cross_entropy(logits, labels[part], pixel_weight=one, reduction="sum")
            grads = torch.autograd.grad(loss, parameters, retain_graph=True)
            sums[name] += torch.cat([grad.flatten() for grad in grads])
    return sums


def probe(net: nn.Module, world: World) -> dict[str, Any]:
    """Would a step on these labels help? The angle between their gradient and that of the truth on other images.

    The first step along a gradient lowers the true loss where the cosine of the two is above 0. Nothing is trained, and
    all images are looked at, so there is no noise of batches. The truth counts pixels equally, or classes equally, as
    mIoU does; and for each class, the loss of its pixels.
    """
    net = copy.deepcopy(net)
    set_mode(net, "frozen")
    net.eval()
    classes = len(world.classes)
    truth = world.val.labels
    frequency = torch.bincount(truth[truth != IGNORE_INDEX], minlength=classes).float()
    balanced = (1 / frequency.clamp(min=1))[truth.clamp(max=classes - 1)]
    wanted: dict[str, tuple[Tensor, Tensor | None]] = {"pixels": (truth, None), "classes": (truth, balanced)}
    large = [number for number in range(classes) if frequency[number] > 0.05 * frequency.sum()]
    for number in large:
        wanted[world.classes[number]] = (truth.where(truth == number, IGNORE_INDEX), None)
    true = gradients(net, world.val.images, wanted)
    known = know(net, world)
    torch.manual_seed(0)
    strong = torch.stack([strong_view()(image) for image in world.target.images])
    source = world.source.take(torch.randperm(len(world.source.images))[: len(strong)])
    made: dict[str, Any] = {}
    for seen in ("plain", "strong", "pasted"):
        mine = {how: make_labels(how, 0.3, known, world) for how, view in PROBES if view == seen}
        targets: dict[str, tuple[Tensor, Tensor | None]] = {}
        views = world.target.images if seen == "plain" else strong
        for how, (labels, _) in mine.items():
            if seen == "pasted":
                generator = torch.Generator().manual_seed(0)  # the same classes whatever the labels
                pair = (source.images, source.labels)
                mixed = class_mix(strong, labels, source=pair, rounding="ceil", generator=generator)
                views, labels = mixed.images, mixed.labels
            targets[how] = (labels, None)
        for how, gradient in gradients(net, views, targets).items():
            cosines = {key: float(F.cosine_similarity(gradient, other, dim=0)) for key, other in true.items()}
            made[f"{how}, {seen}"] = {"cosine": cosines, "labels": mine[how][1]}
    return made


def probe_table(found: dict[str, Any]) -> str:
    """A markdown table of a probe."""
    keys = list(next(iter(found.values()))["cosine"])
    heads = ["labels, images", "share", "precision", "gradient from wrong", *keys]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, one in found.items():
        cells = [f"{one['labels'][key]:.2f}" for key in ("share", "precision", "gradient from wrong labels")]
        cells += [f"{one['cosine'][key]:+.2f}" for key in keys]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)
