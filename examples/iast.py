"""IAST: instance-adaptive self-training (Mei et al., ECCV 2020, arXiv:2008.12197).

An adversarial warm-up brings the domains' outputs closer (``--warmup-steps 0`` leaves it out). Then, in rounds, target
images are labelled one after the other by thresholds that follow each image's own confidences. The student learns from
these labels, smoothed where there are some and sharpened where there are none, and from source images.

Differs from the paper and its published settings: images are labelled in the order of their names, and by the network
as the round before left it. All published settings have ``--source-weight 0``; with another, every step has as many
source as target images.
The thresholds begin anew in every round. On several ranks each takes every N-th image (every N-th pair with ``--per
batch``), and after each all take the average of their thresholds, so labels differ a little from those of one process.

``python examples/source_only.py && python examples/iast.py --init runs/source_only/model.pt``
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from _common.evaluation import evaluate, line, predict_labels, ready_to_predict, score_before, summary
from _common.loading import as_floats, in_blocks
from _common.progress import progress
from _common.rounds import open_store
from _common.run import Run
from _common.settings import Settings, command_line, parse
from _data.augmentation import training_transform
from _data.checks import check_one_size, look_at_masks
from _data.opening import Data, open_data
from _networks.build import build
from _networks.discriminator import adversarial_losses, discriminator
from _reporting import warn_of_few_labels
from torch import Tensor, nn

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.losses import cross_entropy, region_guided_loss
from selftrain_seg.selectors import InstanceAdaptiveSelector
from selftrain_seg.store import PseudoLabelStore, StoredRound
from selftrain_seg.thresholds import IAST_PORTIONS, PortionSchedule


@dataclass(kw_only=True)
class IASTSettings(Settings):
    """Settings of IAST."""

    rounds: int = 3  # of labelling and training
    lr_factors: tuple[float, ...] = (1.0,)  # of --lr in each round; the last one holds in all further rounds
    warmup_steps: int = 6000  # 0 leaves the adversarial warm-up out
    warmup_lr: float = 2e-5  # learning rate of the warm-up
    adversarial_weight: float = 0.001  # of fooling the discriminator
    judge_lr: float = 2e-5  # learning rate of the discriminator
    judge_width: int = 64  # channels of the discriminator's first layer
    portion: tuple[float, float, float] = tuple(IAST_PORTIONS)  # of pixels that are labelled: start, step, stop
    momentum: float = 0.9  # of the thresholds
    gamma: float = 8.0  # how much less is kept of classes with low thresholds
    per: Literal["image", "batch"] = "image"  # batch: two images of one size at once, as in the published code
    confident_weight: float = 0.1  # λ_c
    ignored_weight: float = 3.0  # λ_i
    source_weight: float = 1.0  # of the loss on source images


def supervised(run: Run, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labelled pixels of all processes."""
    return run.mean(cross_entropy(logits, labels, reduction="sum"), (labels != IGNORE_INDEX).sum())


def region_guided(run: Run, logits: Tensor, labels: Tensor, settings: IASTSettings) -> Tensor:
    """``region_guided_loss`` as in the published code, with the two means over the pixels of all processes.

    Where a crop goes beyond its image, what is beyond counts as not labelled.
    """
    classes = logits.shape[1]  # the published code divides by pixels times classes
    weights = {name: getattr(settings, name) / classes for name in ("confident_weight", "ignored_weight")}
    pixels = region_guided_loss(logits, labels, **weights, reduction="none")
    labelled = labels != IGNORE_INDEX
    return sum(run.mean(pixels.where(region, 0).sum(), region.sum()) for region in (labelled, ~labelled))


@torch.no_grad()
def label_in_order(
    net: nn.Module, data: Data, run: Run, store: PseudoLabelStore, number: int, selector: InstanceAdaptiveSelector
) -> StoredRound:
    """Label the target images in order.

    Each image's thresholds come from all before it. So a pass that was killed starts again from the first image, and
    what it wrote before, which the store leaves as it is, is what it would write now.
    """
    names, size = data.target.names, 1 if selector.per == "image" else 2
    blocks = in_blocks(data.target, run, size)
    with store.write(number, names, portion=selector.portion) as writer:
        for _ in progress(range(math.ceil(len(names) / size / run.world)), "labelling", disable=not run.main):
            images, some = next(blocks, (None, ()))
            if images is None:  # the processes add up their thresholds, and none is left for this one
                selector(torch.zeros(0, selector.num_classes, 1, 1, device=run.device))
            else:
                writer.add(some, selector(predict_labels(net, images, run)))
        stored = writer.finish()
    run.say(f"round {number + 1}: {stored}, θ {selector.thresholds.min():.2f} to {selector.thresholds.max():.2f}")
    warn_of_few_labels(run, number + 1, stored)
    return stored


@command_line
def main() -> None:
    settings = parse(IASTSettings, __doc__)
    run = Run(settings)
    data = open_data(settings, run)
    num_classes = data.label_map.num_classes
    torch.manual_seed(settings.seed)
    net = build(settings, num_classes)
    look_at_masks(data, run)
    if settings.per == "batch":
        check_one_size(data)
    student, optimizer = run.prepare(net), run.optimizer(net)
    how = {"momentum": settings.momentum, "gamma": settings.gamma, "per": settings.per}
    selector = InstanceAdaptiveSelector(num_classes, **how).to(run.device)
    if settings.warmup_steps:
        judge = discriminator(num_classes, settings.judge_width)
        wrapped_judge = run.prepare(judge)
        adam = torch.optim.Adam(judge.parameters(), lr=settings.judge_lr, betas=(0.9, 0.99))
        judge_optimizer = run.wrap_optimizer(adam)
    run.register(selector=selector)
    run.restore()
    run.expect(settings.warmup_steps + settings.rounds * settings.steps)
    store = open_store(run, data)
    score = score_before(net, data, run)
    transform = training_transform(settings.crop, scale=settings.scale_range, jitter=settings.colour_jitter)

    if settings.warmup_steps and not run.passed("warmup"):
        source = run.loader(data.source, "warmup source", transform)
        target = run.loader(data.target, "warmup target", transform)
        slow = {optimizer: settings.warmup_lr / settings.lr}
        student.train()
        steps = run.steps(
            "warmup", settings.warmup_steps, source, target, lr_scale=slow, decay=(0, settings.warmup_steps)
        )
        for _, (source_images, labels), (target_images, _) in steps:
            with run.accumulate(student, wrapped_judge):
                logits = student(as_floats(source_images))
                source_loss = supervised(run, logits, labels)
                target_logits = student(as_floats(target_images))
                fooling, judging = adversarial_losses(judge, wrapped_judge, logits, target_logits)
                run.backward(source_loss + settings.adversarial_weight * fooling + judging / 2)
                for one in (optimizer, judge_optimizer):
                    one.step()
                    one.zero_grad()
            run.log(warmup_source_loss=source_loss, fooling=fooling, judging=judging)
        run.evaluation("after the warm-up")

    for number in range(settings.rounds):
        stage = f"round{number + 1}"
        if run.passed(stage):
            continue
        if run.has_begun(stage):
            stored = store.round(number)
        else:
            selector.portion = PortionSchedule(*settings.portion)(number)
            selector.reset()
            stored = label_in_order(ready_to_predict(net, data, run), data, run, store, number, selector)
        source = run.loader(data.source, f"{stage} source", transform)
        target = run.loader(data.target_with(stored.labels), f"{stage} target", transform)

        student.train()
        lr_scale = settings.lr_factors[min(number, len(settings.lr_factors) - 1)]
        steps = run.steps(stage, settings.steps, source, target, lr_scale=lr_scale)
        for _, (source_images, source_labels), (images, labels) in steps:
            with run.accumulate(student):  # the domains apart: in one batch BatchNorm would mix their statistics
                source_loss = torch.zeros((), device=run.device)
                if settings.source_weight:
                    source_loss = supervised(run, student(as_floats(source_images)), source_labels)
                target_loss = region_guided(run, student(as_floats(images)), labels, settings)
                run.backward(settings.source_weight * source_loss + target_loss)
                optimizer.step()
                optimizer.zero_grad()
            run.log(source_loss=source_loss, target_loss=target_loss)
        score = evaluate(net, data, run, number + 1, stored=stored, thresholds=selector.thresholds)
        run.say(f"round {number + 1}: {line(score, data)}")

    if settings.warmup_steps and not settings.rounds:
        score = evaluate(net, data, run, 1)
    run.finish(net, summary(score, data))


if __name__ == "__main__":
    main()
