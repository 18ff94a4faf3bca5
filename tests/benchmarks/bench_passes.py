"""Whole passes with the small U-Net of the examples: 32 street images of 128 x 256, 13 classes, in batches of 8.

Offline: the network labels a target set, in two passes over the images: one for the statistics, of every pixel or of
one in four, as many as CBST's code takes, one for labels, which go to a store. "network alone" is the two
forward passes. Online: one step of a mean teacher that labels a batch of 8
target images, of which half of the classes of 8 source images cover a part, and a student that learns from both.
"network step" has the same network passes but the teacher's, torch's cross entropy and the same optimizer.
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile, record_function

from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.losses import cross_entropy
from selftrain_seg.mining import class_mix
from selftrain_seg.selectors import select_fixed, select_reweighted
from selftrain_seg.store import PseudoLabelStore
from selftrain_seg.teachers import MeanTeacher
from selftrain_seg.thresholds import ClassBalancedThreshold
from tests.benchmarks._harness import Report

IMAGES, BATCH, SIZE = 32, 8, (128, 256)
CLASSES = SyntheticStreets.num_classes
WARM_UP = 20  # steps of training, so that labels are the coherent regions that labels are
OVERHEAD = 0.15


def small_net():
    path = Path(__file__).parents[2] / "examples" / "_networks" / "small_unet.py"
    spec = importlib.util.spec_from_file_location("examples_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SmallUNet(CLASSES)


def read(domain):
    streets = SyntheticStreets(domain, "train", size=SIZE, length=IMAGES)
    images, labels = (torch.stack(part) for part in zip(*(streets[i] for i in range(IMAGES)), strict=True))
    images = images.to(memory_format=torch.channels_last)
    return images.split(BATCH), labels.split(BATCH)


def run(report: Report, *, rounds: int) -> None:
    torch.manual_seed(0)
    net = small_net().to(memory_format=torch.channels_last)
    source, target = read("source"), read("target")
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3)
    for step in range(WARM_UP):
        images, labels = (part[step % len(part)] for part in source)
        F.cross_entropy(net(images), labels, ignore_index=255).backward()
        optimizer.step()
        optimizer.zero_grad()
    for group in optimizer.param_groups:
        group["lr"] = 1e-6  # from here on time only
    online(report, rounds, net, optimizer, (source[0][0], source[1][0]), target[0][0])
    offline(report, rounds, net.eval(), target[0])


@torch.no_grad()
def offline(report, rounds, net, batches):
    every, published = (ClassBalancedThreshold(CLASSES, 0.2, stride=stride) for stride in (1, 2))
    names = [[f"{batch}-{image}" for image in range(BATCH)] for batch in range(len(batches))]

    def network_alone():
        for images in batches * 2:
            net(images)

    def labels(add, estimator=published, update=None, select=select_reweighted):
        update = update or estimator.update
        estimator.reset()
        for images in batches:
            logits = net(images)
            with record_function("statistics"):
                update(logits)
        with record_function("statistics"):
            thresholds = estimator.compute()
        for images, those in zip(batches, names, strict=True):
            logits = net(images)
            with record_function("labels"):
                pseudo = select(logits, thresholds)
            add(those, pseudo)

    def stored(threads, keep=("confidence",)):
        with tempfile.TemporaryDirectory() as root:
            store = PseudoLabelStore(root, CLASSES, keep=keep, threads=threads)
            with store.write(0, [name for batch in names for name in batch]) as writer:

                def add(those, pseudo):
                    with record_function("store"):
                        writer.add(those, pseudo)

                labels(add)
                with record_function("store"):
                    writer.finish()

    compiled = {}
    if report.compile:
        torch.compiler.reset()
        fast = torch.compile(published.update), torch.compile(select_reweighted)
        compiled["statistics and labels, compiled"] = lambda: labels(lambda *_: None, published, *fast)
    measured = report.compare(
        f"label {IMAGES} images",
        {
            "network alone, two passes": network_alone,
            "statistics of every pixel and labels": lambda: labels(lambda *_: None, every),
            "statistics and labels": lambda: labels(lambda *_: None),
            **compiled,
            "… and store of labels": lambda: stored(0, ()),
            "… and store of labels, in the background": lambda: stored(4, ()),
            "… and of confidences, in the background": lambda: stored(4),
        },
        rounds=rounds,
    )
    alone = measured["network alone, two passes"].median_ms
    rates = [f"{IMAGES / entry.median_ms * 1e3:.1f} ({name})" for name, entry in measured.items()]
    report.note(f"Offline pass, images/s: {', '.join(rates)}.")
    report.note(f"Offline pass, beyond the network: {largest(lambda: stored(0), alone)}.")
    for name in ("statistics and labels", *compiled, "… and store of labels, in the background"):
        text = name.replace("…", "statistics, labels")
        report.promise(f"offline pass, {text}: overhead on the network", measured[name].median_ms / alone - 1, OVERHEAD)


def online(report, rounds, net, optimizer, source, images):
    teacher = MeanTeacher(net, momentum=0.99)
    other = copy.deepcopy(net).eval()
    source_images, source_labels = source

    def learn(loss):
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def network_step():
        loss = F.cross_entropy(net(source_images), source_labels, ignore_index=255)
        learn(loss + F.cross_entropy(net(images), source_labels, ignore_index=255))

    def with_teacher():
        with torch.no_grad():
            other(images)
        network_step()

    def whole_step():
        with record_function("teacher's average"):
            teacher.update(net)
        logits = teacher(images)
        with record_function("selection"):
            pseudo = select_fixed(logits, threshold=0.9, weigh_by="batch")
        with record_function("mixing"):
            mixed = class_mix(images, pseudo.labels, pixel_weight=pseudo.pixel_weight, source=source)
        on_source, on_target = net(source_images), net(mixed.images)
        with record_function("losses, forward"):
            loss = cross_entropy(on_source, source_labels)
            loss = loss + cross_entropy(on_target, mixed.labels, pixel_weight=mixed.pixel_weight, normalize="all")
        learn(loss)

    net.train()
    measured = report.compare(
        f"training step, 2 x {BATCH} images",
        {
            "network step": network_step,
            "… and the teacher's forward": with_teacher,
            "whole step": whole_step,
        },
        rounds=rounds,
    )
    step, both, whole = (entry.median_ms for entry in measured.values())
    report.promise("training step: overhead on the passes of network and teacher", whole / both - 1, OVERHEAD)
    report.note(
        f"Training step: {whole:.0f} ms. The passes of network and teacher with torch's cross entropy take {both:.0f}"
        f" ms, and {step:.0f} ms without the teacher, whose forward pass is {(both - step) / step:.0%} of such a step."
    )
    report.note(f"Training step, beyond the network: {largest(whole_step, both)}.")


def largest(call, beside):
    """The three stages that take most of the time, from the profiler, with the operator that does in each."""
    stages = ("statistics", "labels", "store", "teacher's average", "selection", "mixing", "losses, forward")
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        call()
    found = {}
    for event in recorded.events():
        if event.name in stages:
            time, inside = found.get(event.name, (0.0, {}))
            add_operators(event, inside)
            found[event.name] = (time + event.cpu_time_total / 1e3, inside)
        elif event.name == "selftrain_seg::weighted_loss_backward":  # that of all losses here
            time, inside = found.get("losses, backward", (0.0, {}))
            add_operators(event, inside)
            found["losses, backward"] = (time + event.cpu_time_total / 1e3, inside)
    ranked = sorted(found.items(), key=lambda item: -item[1][0])[:3]
    return "; ".join(
        f"{name} {time:.0f} ms, {time / beside:.0%} of the network ({', '.join(top(inside))})"
        for name, (time, inside) in ranked
    )


def add_operators(event, inside):
    for child in event.cpu_children:
        if child.name.startswith("aten::"):
            inside[child.name] = inside.get(child.name, 0.0) + child.self_cpu_time_total / 1e3
        add_operators(child, inside)


def top(inside):
    ranked = sorted(inside.items(), key=lambda item: -item[1])[:2]
    return [f"`{name.removeprefix('aten::')}` {time:.0f} ms" for name, time in ranked]
