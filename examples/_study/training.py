"""Training on the source, and adapting."""

from __future__ import annotations

import argparse
import copy
import resource
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import trange

from _study.labels import Known, know, make_labels
from _study.measuring import confusion, iou_of, logits_of, measure
from _study.network import build, mix_statistics, optimizer_of, set_mode
from _study.variants import Variant
from _study.world import World, augment, strong_view
from selftrain_seg.losses import cross_entropy
from selftrain_seg.mining import class_mix
from selftrain_seg.teachers import MeanTeacher


def source_batches(world: World, seed: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
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


def target_loss(
    net: nn.Module, average: nn.Module, seen: tuple[Tensor, Tensor], source: tuple[Tensor, Tensor], variant: Variant
) -> Tensor:
    """Loss of a batch of target images and their labels, which the teacher makes where the variant says so."""
    views, labels = seen
    weight = None
    if variant.labels == "teacher":
        confidence, labels = average(views).softmax(dim=1).max(dim=1)
        sure = (confidence >= variant.confidence).float().mean(dim=(1, 2), keepdim=True)
        weight = sure.expand_as(confidence).contiguous()
    if variant.paste is not None:
        other = source if variant.paste == "source" else None
        mixed = class_mix(views, labels, pixel_weight=weight, source=other, rounding="ceil")
        views, labels, weight = mixed.images, mixed.labels, mixed.pixel_weight
    if variant.strong:
        recolour = strong_view()
        views = torch.stack([recolour(view) for view in views])
    logits = net(views.contiguous(memory_format=torch.channels_last))
    return cross_entropy(logits, labels, pixel_weight=weight, normalize=variant.normalize)


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
    sources = source_batches(world, seed + 1000, variant.batch[0])
    more = source_batches(world, seed + 2000, variant.batch[1])
    order = torch.Generator().manual_seed(seed)
    rounds: list[dict[str, Any]] = []
    for number in range(variant.rounds):
        how = "all" if variant.labels == "teacher" else variant.labels  # what the teacher's are like
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
                seen = augment(world.target.images[places], labels[places])
                loss = loss + variant.target_weight * target_loss(net, average, seen, (images, truth), variant)
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
