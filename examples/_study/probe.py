"""Gradients of pseudo-labels, compared with those of true labels."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from _study.labels import make_labels, predict
from _study.network import set_mode
from _study.world import World, as_floats, strong_view
from selftrain_seg import IGNORE_INDEX
from selftrain_seg.losses import cross_entropy
from selftrain_seg.mining import class_mix

# (method of labelling, view of the images)
_PLAIN = ("re-weighted", "global", "floor", "all", "all interiors", "all borders", "re-weighted, trusted classes")
_PLAIN += ("as trusted", "soft", "right ones of re-weighted", "truth where re-weighted", "truth")
PROBES = (
    *((method, "plain") for method in _PLAIN),
    *((method, "strong") for method in ("re-weighted", "floor", "all", "truth")),
    *((method, "pasted") for method in ("re-weighted", "floor", "all", "as trusted", "truth")),
)


def gradients(net: nn.Module, views: Tensor, targets: dict[str, tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
    """Return the gradient of the loss summed over a set of images as one vector, for each of several labels."""
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    sums = {name: torch.zeros(sum(p.numel() for p in parameters)) for name in targets}
    for first in trange(0, len(views), 8, desc="gradients", leave=False, disable=None):
        part = slice(first, first + 8)
        logits = net(as_floats(views[part]))
        for name, (labels, weight) in targets.items():
            pixel_weight = None if weight is None else weight[part]
            loss = cross_entropy(logits, labels[part], pixel_weight=pixel_weight, reduction="sum")
            grads = torch.autograd.grad(loss, parameters, retain_graph=True)
            sums[name] += torch.cat([grad.flatten() for grad in grads])
    return sums


def probe(net: nn.Module, world: World) -> dict[str, Any]:
    """Compare the gradient of each kind of label with that of the true labels of other images, by their cosine.

    A small step along a gradient lowers the true loss if the cosine is positive. Nothing is trained, and all images are
    used, so there is no noise of batches. The true loss weights pixels equally, or classes equally, as mIoU does, or
    takes the pixels of one large class.
    """
    net = copy.deepcopy(net)
    set_mode(net, "frozen")
    net.eval()
    classes = len(world.classes)
    truth = world.val.labels
    frequency = torch.bincount(truth[truth != IGNORE_INDEX], minlength=classes).float()
    balanced = (1 / frequency.clamp(min=1))[truth.clamp(max=classes - 1)]
    true_labels: dict[str, tuple[Tensor, Tensor | None]] = {"pixels": (truth, None), "classes": (truth, balanced)}
    large = [number for number in range(classes) if frequency[number] > 0.05 * frequency.sum()]
    for number in large:
        true_labels[world.classes[number]] = (truth.where(truth == number, IGNORE_INDEX), None)
    true = gradients(net, world.val.images, true_labels)
    predictions = predict(net, world)
    torch.manual_seed(0)
    strong = torch.stack([strong_view()(image) for image in world.target.images])
    source = world.source.take(torch.randperm(len(world.source.images))[: len(strong)])
    found: dict[str, Any] = {}
    for view in ("plain", "strong", "pasted"):
        labels_by_method = {method: make_labels(method, 0.3, predictions, world) for method, of in PROBES if of == view}
        targets: dict[str, tuple[Tensor, Tensor | None]] = {}
        views = world.target.images if view == "plain" else strong
        for method, (labels, _) in labels_by_method.items():
            if view == "pasted":
                generator = torch.Generator().manual_seed(0)  # the same classes for all labels
                pair = (source.images, source.labels)
                mixed = class_mix(strong, labels, source=pair, rounding="ceil", generator=generator)
                views, labels = mixed.images, mixed.labels
            targets[method] = (labels, None)
        for method, gradient in gradients(net, views, targets).items():
            cosines = {key: float(F.cosine_similarity(gradient, other, dim=0)) for key, other in true.items()}
            found[f"{method}, {view}"] = {"cosine": cosines, "labels": labels_by_method[method][1]}
    return found


def probe_table(found: dict[str, Any]) -> str:
    """Return the markdown table of a probe."""
    keys = list(next(iter(found.values()))["cosine"])
    heads = ["labels, images", "share", "precision", "gradient from wrong", *keys]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, one in found.items():
        cells = [f"{one['labels'][key]:.2f}" for key in ("share", "precision", "gradient from wrong labels")]
        cells += [f"{one['cosine'][key]:+.2f}" for key in keys]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)
