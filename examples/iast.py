"""IAST: instance-adaptive self-training (Mei et al., ECCV 2020, arXiv:2008.12197).

An adversarial warm-up makes the network's outputs on both domains alike (``--warmup-steps 0`` skips it). Then come
rounds. Each labels the target images one after the other, with thresholds that adapt to the confidences of each image,
and trains on these labels and on source images. The loss smooths predictions where a pixel has a label, and sharpens
them where it has none.

Differs from the paper and its published settings: the images are labelled in the order of their names, by the network
of the previous round, and the thresholds start anew in every round. The published settings have ``--source-weight 0``;
otherwise each step has as many source as target images. With N processes, each labels every N-th image (every N-th pair
with ``--per batch``) and the thresholds are averaged after each, so labels differ slightly from those of one process.

``python examples/source_only.py && python examples/iast.py --init runs/source_only/model.pt``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from _common.evaluation import evaluate, line, score_before, summary
from _common.loading import as_floats
from _common.losses import supervised_loss
from _common.run import Run
from _common.settings import Settings, command_line, parse
from _data.augmentation import training_transform
from _data.checks import check_one_size, look_at_masks
from _data.opening import open_data
from _labelling.in_order import label_in_order
from _labelling.rounds import open_store
from _networks.build import build
from _networks.discriminator import adversarial_losses, discriminator
from torch import Tensor

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.losses import region_guided_loss
from selftrain_seg.selectors import InstanceAdaptiveSelector
from selftrain_seg.thresholds import IAST_PORTIONS, PortionSchedule


@dataclass(kw_only=True)
class IASTSettings(Settings):
    """Settings of IAST."""

    rounds: int = 3  # rounds of labelling and training
    lr_factors: tuple[float, ...] = (1.0,)  # factor of --lr in each round; the last one also holds for later rounds
    warmup_steps: int = 6000  # steps of the adversarial warm-up; 0 disables it
    warmup_lr: float = 2e-5  # learning rate of the warm-up
    adversarial_weight: float = 0.001  # weight of the loss that fools the discriminator
    judge_lr: float = 2e-5  # learning rate of the discriminator
    judge_width: int = 64  # channels of the discriminator's first layer
    portion: tuple[float, float, float] = tuple(IAST_PORTIONS)  # portion of pixels to label: start, step, stop
    momentum: float = 0.9  # momentum of the thresholds
    gamma: float = 8.0  # the larger, the fewer pixels of classes with low thresholds are labelled
    per: Literal["image", "batch"] = "image"  # batch: two images of one size at a time, as in the published code
    confident_weight: float = 0.1  # λ_c, weight of the smoothing of labelled pixels
    ignored_weight: float = 3.0  # λ_i, weight of the sharpening of pixels without a label
    source_weight: float = 1.0  # weight of the loss on source images


def region_guided(run: Run, logits: Tensor, labels: Tensor, settings: IASTSettings) -> Tensor:
    """Return ``region_guided_loss`` with its means over the pixels of all processes.

    As published, they divide by the number of classes, too. Pixels of a crop beyond the image count as unlabelled.
    """
    weights = {name: getattr(settings, name) / logits.shape[1] for name in ("confident_weight", "ignored_weight")}
    pixels = region_guided_loss(logits, labels, **weights, reduction="none")
    labelled = labels != IGNORE_INDEX
    return sum(run.mean(pixels.where(region, 0).sum(), region.sum()) for region in (labelled, ~labelled))


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
        check_one_size(data, run, "--per batch")
    student, optimizer = run.prepare(net), run.optimizer(net)
    rule = {"momentum": settings.momentum, "gamma": settings.gamma, "per": settings.per}
    selector = InstanceAdaptiveSelector(num_classes, **rule).to(run.device)
    if settings.warmup_steps:
        judge = discriminator(num_classes, settings.judge_width)
        wrapped_judge = run.prepare(judge)
        judge_optimizer = torch.optim.Adam(judge.parameters(), lr=settings.judge_lr, betas=(0.9, 0.99))
        judge_optimizer = run.wrap_optimizer(judge_optimizer)
    run.register(selector=selector)
    run.restore()
    run.expect(settings.warmup_steps + settings.rounds * settings.steps)
    store = open_store(run, data)
    score = score_before(net, data, run)
    transform = training_transform(settings.crop, scale=settings.scale_range, jitter=settings.colour_jitter)

    if settings.warmup_steps and not run.passed("warmup"):
        source = run.loader(data.source, "warmup source", transform)
        target = run.loader(data.target, "warmup target", transform)
        schedule = {"lr_scale": {optimizer: settings.warmup_lr / settings.lr}, "decay": (0, settings.warmup_steps)}
        student.train()
        steps = run.steps("warmup", settings.warmup_steps, source, target, **schedule)
        for _, (source_images, source_labels), (target_images, _) in steps:
            with run.accumulate(student, wrapped_judge):
                source_logits = student(as_floats(source_images))
                source_loss = supervised_loss(run, source_logits, source_labels)
                target_logits = student(as_floats(target_images))
                fooling, judging = adversarial_losses(judge, wrapped_judge, source_logits, target_logits)
                run.backward(source_loss + settings.adversarial_weight * fooling + judging / 2)
                for each in (optimizer, judge_optimizer):
                    each.step()
                    each.zero_grad()
            run.log(warmup_source_loss=source_loss, fooling=fooling, judging=judging)
        run.evaluation("after the warm-up")

    for number in range(settings.rounds):
        stage = f"round{number + 1}"
        if run.passed(stage):
            continue
        portion = PortionSchedule(*settings.portion)(number)
        stored = label_in_order(net, data, run, store, stage, number, selector, portion)
        source = run.loader(data.source, f"{stage} source", transform)
        target = run.loader(data.target_with(stored.labels), f"{stage} target", transform)

        student.train()
        lr_scale = settings.lr_factors[min(number, len(settings.lr_factors) - 1)]
        steps = run.steps(stage, settings.steps, source, target, lr_scale=lr_scale)
        for _, (source_images, source_labels), (target_images, pseudo_labels) in steps:
            with run.accumulate(student):
                # Separate forward passes: in a joint batch, BatchNorm would mix the statistics of the two domains.
                source_loss = torch.zeros((), device=run.device)
                if settings.source_weight:
                    source_loss = supervised_loss(run, student(as_floats(source_images)), source_labels)
                target_loss = region_guided(run, student(as_floats(target_images)), pseudo_labels, settings)
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
