"""Training on the source, and adaptation to the target."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from typing import Any

import torch
from _common.progress import peak_resident
from torch import Tensor, nn
from tqdm import trange

from _study.labels import Predictions, make_labels, predict
from _study.measuring import measure, score
from _study.network import build, mix_statistics, optimizer_of, set_mode
from _study.restyling import restyle
from _study.variants import Variant
from _study.world import World, augment, strong_view
from selftrain_seg import IGNORE_INDEX
from selftrain_seg.losses import cross_entropy
from selftrain_seg.mining import class_mix, classes_below
from selftrain_seg.teachers import MeanTeacher
from selftrain_seg.views import mask_patches

_PATCH = 16  # side of a hidden patch, in pixels
_SMALL = 0.03  # share of the source pixels below which a class is small
_SMALL_PROBABILITY = 0.05  # of small classes, above which a pixel is ignored


def source_batches(world: World, seed: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of source images without end, the same for all variants of a seed."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < size:
            order = torch.cat([order, torch.randperm(len(world.source.images), generator=generator)])
        batch, order = order[:size], order[size:]
        yield world.source.take(batch)


def train_source(name: str, seed: int, world: World, args: argparse.Namespace) -> tuple[nn.Module, dict[str, Any]]:
    """Train on labelled source images; the mIoU on held-out ones shows whether training has converged."""
    torch.manual_seed(seed)
    net = build(name, len(world.classes))
    set_mode(net, "backbone")
    steps, batch = args.source_steps, 4 if name == "pretrained" else 8
    optimizer = optimizer_of(name, net, args.source_lr)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
    batches, curve = source_batches(world, seed, batch), {}
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
            curve[step + 1] = 100 * float(score(net, world.held_out, len(world.classes)).miou)
            set_mode(net, "backbone")
    return net, {"held-out source, by step": curve, **clock.read()}


class Clock:
    """Measure the time and memory of a run."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.monotonic(), time.process_time()

    def read(self) -> dict[str, float]:
        """Return the minutes that have passed and the peak memory."""
        return {
            "minutes": (time.monotonic() - self.wall) / 60,
            "CPU minutes": (time.process_time() - self.cpu) / 60,
            "peak memory of the process, MB": peak_resident() / 2**20,
        }


def hide(images: Tensor, share: float, variant: Variant) -> Tensor:
    """Hide a share of the patches of images."""
    return mask_patches(images, _PATCH, share, value=0.5 if variant.grey else images.mean(dim=(0, 2, 3)))[0]


def source_views(batch: tuple[Tensor, Tensor], world: World, variant: Variant) -> tuple[Tensor, Tensor]:
    """Augment source images by the settings of the variant."""
    images, labels = batch
    if variant.restyled:
        images = restyle(images, world.target.images, variant.restyled)
    images, labels = augment(images, labels)
    if variant.source_strong:
        recolour = strong_view()
        images = torch.stack([recolour(view) for view in images]).contiguous(memory_format=torch.channels_last)
    if variant.source_masked > 0:
        images = hide(images, variant.source_masked, variant)
    return images, labels


def small_classes(world: World) -> Tensor:
    """Return the classes that cover a small share of the source pixels."""
    labels = world.source.labels
    counts = torch.bincount(labels[labels != IGNORE_INDEX], minlength=len(world.classes))
    return classes_below(counts, share=_SMALL)


def target_loss(
    net: nn.Module,
    average: nn.Module,
    target: tuple[Tensor, Tensor],
    source: tuple[Tensor, Tensor],
    variant: Variant,
    small: Tensor,
) -> Tensor:
    """Return the loss on target images, with the given labels or, by the variant, with those of the teacher."""
    views, labels = target
    weight = None
    if variant.labels == "teacher":
        probs = average(views).softmax(dim=1)
        if variant.mirrored:
            probs = (probs + average(views.flip(-1)).softmax(dim=1).flip(-1)) / 2
        confidence, labels = probs.max(dim=1)
        sure = (confidence >= variant.confidence).float().mean(dim=(1, 2), keepdim=True)
        weight = sure.expand_as(confidence).contiguous()
        if variant.teach == "sure":
            labels, weight = labels.where(confidence >= variant.confidence, IGNORE_INDEX), None
        elif variant.teach == "probabilities":
            labels = probs
        elif variant.teach == "large":
            doubtful = probs[:, small].sum(dim=1) > _SMALL_PROBABILITY
            labels = labels.where(~doubtful, IGNORE_INDEX)
    if variant.paste is not None:
        paste_from = source if variant.paste == "source" else None
        mixed = class_mix(views, labels, pixel_weight=weight, source=paste_from, rounding="ceil")
        views, labels, weight = mixed.images, mixed.labels, mixed.pixel_weight
    if variant.strong:
        recolour = strong_view()
        views = torch.stack([recolour(view) for view in views])
    if variant.masked > 0:
        views = hide(views, variant.masked, variant)
    logits = net(views.contiguous(memory_format=torch.channels_last))
    return cross_entropy(logits, labels, pixel_weight=weight, normalize=variant.normalize)


def adapt(
    name: str, start: nn.Module, variant: Variant, seed: int, world: World, lr: float, first: dict[float, Predictions]
) -> dict[str, Any]:
    """Adapt a copy of a network and score it after each round; ``first`` caches the predictions of the first round."""
    clock, net = Clock(), copy.deepcopy(start)
    pretrained = name == "pretrained"
    batchnorm = variant.batchnorm or ("frozen" if pretrained else "batch")
    alpha = variant.alpha if variant.alpha >= 0 else (0.0 if pretrained else 1.0)
    mix_statistics(net, world.target.images, alpha)
    average = MeanTeacher(net, momentum=variant.momentum, train_mode=batchnorm == "batch")
    sources = source_batches(world, seed + 1000, variant.batch[0])
    more = source_batches(world, seed + 2000, variant.batch[1])
    order = torch.Generator().manual_seed(seed)
    small = small_classes(world)
    rounds: list[dict[str, Any]] = []
    for number in range(variant.rounds):
        about: dict[str, Any] = {}
        labels = world.target.labels  # unused if the variant has no labels
        if variant.labels != "none":
            method = "all" if variant.labels == "teacher" else variant.labels  # for statistics of the teacher's labels
            predictions = first.get(alpha) if number == 0 else None
            predictions = predictions if predictions is not None else predict(net, world)
            if number == 0:
                first[alpha] = predictions
            portion = min(variant.portion + number * variant.growth, 1.0)
            labels, about = make_labels(method, portion, predictions, world)
        set_mode(net, batchnorm)
        optimizer = optimizer_of(name, net, lr * variant.lr)
        power = 0.9 if variant.schedule == "poly" else 0.0
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, variant.steps, power=power)
        for step in trange(variant.steps, desc=f"round {number + 1}", leave=False, disable=None):
            torch.manual_seed(seed * 1_000_003 + number * variant.steps + step)
            images, truth = source_views(next(sources), world, variant)
            loss = variant.source_weight * cross_entropy(net(images), truth)
            if variant.labels == "none":
                images, truth = source_views(next(more), world, variant)
                loss = loss + cross_entropy(net(images), truth)
            else:
                drawn = torch.randint(len(labels), (variant.batch[1],), generator=order)
                target = augment(world.target.images[drawn], labels[drawn])
                loss = loss + variant.target_weight * target_loss(net, average, target, (images, truth), variant, small)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update(net)
        if batchnorm == "batch":
            mix_statistics(net, world.target.images, 1.0)
        rounds.append({"labels": about, **measure(net, world)})
    if not rounds:  # only BatchNorm's statistics have changed
        return {**measure(net, world), **clock.read()}
    teacher = copy.deepcopy(average.model)
    if batchnorm == "batch":
        mix_statistics(teacher, world.target.images, 1.0)
    averaged = measure(teacher, world)
    return {**rounds[-1], "averaged weights": averaged, "rounds": rounds, **clock.read()}
