"""IAST: instance-adaptive self-training (Mei et al., ECCV 2020, arXiv:2008.12197).

An adversarial warm-up brings the domains' outputs closer (``--warmup-steps 0`` leaves it out). Then, in rounds, target
images are labelled one after the other by thresholds that follow each image's own confidences, and the student learns
from these labels, smoothed where there are some and sharpened where there are none, and from source images.

Differs from the paper and its published settings: AdamW for Adam and a polynomial schedule for a cosine one; images
keep their size in training and labelling (``--crop`` cuts them); every step has as many source as target images (the
published settings for SYNTHIA weigh source by 0: ``--source-weight 0``); batches of the warm-up are not of one image.
The thresholds begin anew in every round. On several ranks each goes through every so-manieth image and after every
image all take the average of their thresholds, so labels differ a little from those of one process.

``python examples/source_only.py && python examples/iast.py --init runs/source_only/model.pt``
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from _common import arguments
from _common.evaluation import evaluate, line, predict, prepare, report, score_before
from _common.folders import Data, look_at_masks, open_data, training_transform
from _common.loading import Batches, as_floats, in_order
from _common.networks import build, optimizer_of
from _common.rounds import note_round, open_store, warn_of_few
from _common.run import Run
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from tqdm import tqdm

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.losses import cross_entropy, region_guided_loss
from selftrain_seg.selectors import InstanceAdaptiveSelector
from selftrain_seg.store import PseudoLabelStore, StoredRound
from selftrain_seg.thresholds import IAST_PORTIONS, PortionSchedule


def supervised(run: Run, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labelled pixels of all ranks."""
    return run.mean(cross_entropy(logits, labels, reduction="sum"), (labels != IGNORE_INDEX).sum())


def region_guided(run: Run, logits: Tensor, labels: Tensor) -> Tensor:
    """``region_guided_loss`` as in the published code, with the two means over the pixels of all ranks.

    Where a crop goes beyond its image, what is beyond counts as not labelled.
    """
    classes = logits.shape[1]  # the published code divides by pixels times classes
    pixels = region_guided_loss(
        logits,
        labels,
        confident_weight=run.args.confident_weight / classes,
        ignored_weight=run.args.ignored_weight / classes,
        reduction="none",
    )
    labelled = labels != IGNORE_INDEX
    return sum(run.mean(pixels.where(region, 0).sum(), region.sum()) for region in (labelled, ~labelled))


def discriminator(num_classes: int, width: int) -> nn.Sequential:
    """Probabilities (B, C, H, W) to scores at a 32nd of the resolution, which it learns to be 1 for source, else 0."""
    widths, layers = (num_classes, width, 2 * width, 4 * width, 8 * width), []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, stride=2, padding=1))


def warm_up(net: nn.Module, student: nn.Module, data: Data, run: Run) -> None:
    """Learn from source labels, and to make outputs on target images that a discriminator takes for source's."""
    args = run.args
    judge = discriminator(data.label_map.num_classes, args.judge_width).to(run.device)
    wrapped = run.wrap(judge)
    optimizer, schedule = optimizer_of(args, net, args.warmup_steps, lr=args.warmup_lr)
    judge_optimizer = torch.optim.Adam(judge.parameters(), lr=args.judge_lr, betas=(0.9, 0.99))
    judge_schedule = torch.optim.lr_scheduler.PolynomialLR(judge_optimizer, args.warmup_steps, power=0.9)
    source = Batches(data.source, run, "warmup source", training_transform(args.crop))
    target = Batches(data.target, run, "warmup target", training_transform(args.crop))
    state = {"judge": judge, "judge_optimizer": judge_optimizer, "judge_schedule": judge_schedule}
    student.train()
    for step in run.steps("warmup", args.warmup_steps, net=net, optimizer=optimizer, schedule=schedule, **state):
        for part in range(args.accumulate):
            number = step * args.accumulate + part
            (source_images, labels), (target_images, _) = source[number], target[number]
            with run.forward(student, wrapped):
                logits = student(as_floats(source_images))
                source_loss = supervised(run, logits, labels)
                from_source, from_target = logits.softmax(1), student(as_floats(target_images)).softmax(1)
                # Two losses of one backward pass: what fools the judge does not move it, ...
                fixed = {name: parameter.detach() for name, parameter in judge.named_parameters()}
                scores = functional_call(judge, fixed, (from_target,))
                fooling = F.mse_loss(scores, torch.ones_like(scores))
                # ... and what makes it a better one does not move the student.
                ones, zeros = wrapped(from_source.detach()), wrapped(from_target.detach())
                judging = F.mse_loss(ones, torch.ones_like(ones)) + F.mse_loss(zeros, torch.zeros_like(zeros))
            loss = source_loss + args.adversarial_weight * fooling + judging / 2
            run.learn(loss, optimizer, schedule, (judge_optimizer, judge_schedule))
        run.scalars(step, warmup_source_loss=source_loss, fooling=fooling, judging=judging)


def check_one_size(data: Data) -> None:
    """Two images at once are of one size; found out before the warm-up, not after it."""
    sizes = {tuple(data.target[place][0].shape[-2:]) for place in tqdm(range(len(data.target)), "sizes", leave=False)}
    if len(sizes) > 1:
        raise SystemExit(f"--per batch needs target images of one size, and there are {len(sizes)}: --resize")


@torch.no_grad()
def label_target(
    net: nn.Module, data: Data, run: Run, store: PseudoLabelStore, round: int, selector: InstanceAdaptiveSelector
) -> StoredRound:
    """Label the target images in order.

    Each image's thresholds come from all before it. So a pass that was killed starts again from the first image, and
    what it wrote before, which the store leaves as it is, is what it would write now.
    """
    names, size = data.target.names, 1 if selector.per == "image" else 2
    calls = math.ceil(math.ceil(len(names) / run.world) / size)  # the ranks add up their thresholds in each
    with store.write(round, names, portion=selector.portion) as writer:
        for images, some in in_order(data.target, run, range(run.rank, len(names), run.world), size=size):
            writer.add(some, selector(predict(net, images, run)))
            calls -= 1
        for _ in range(calls):  # no image is left for this rank
            selector(torch.zeros(0, selector.num_classes, 1, 1, device=run.device))
        stored = writer.finish()
    run.say(f"round {round + 1}: {stored}, θ {selector.thresholds.min():.2f} to {selector.thresholds.max():.2f}")
    warn_of_few(run, round, stored)
    return stored


def main() -> None:
    parser = arguments.parser(
        __doc__,
        small={
            "steps": 120,
            "lr": 2e-3,
            "reestimate_bn": 1,
            "warmup_steps": 120,
            "warmup_lr": 2e-3,
            "adversarial_weight": 0.01,
            "judge_lr": 1e-3,
            "judge_width": 16,
        },
        papers={
            "steps": 3000,
            "batch": 2,
            "lr": 3e-5,
            "largest_crop": [512, 1024],
            "frozen_bn": True,
            "warmup_steps": 6000,
        },
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup-steps", type=int, help="0 leaves the adversarial warm-up out")
    parser.add_argument("--warmup-lr", type=float, default=2e-5)
    parser.add_argument("--adversarial-weight", type=float, default=0.001)
    parser.add_argument("--judge-lr", type=float, default=2e-5, help="of the discriminator")
    parser.add_argument("--judge-width", type=int, default=64, help="channels of the discriminator's first layer")
    parser.add_argument("--portion", type=float, nargs=3, default=IAST_PORTIONS, help="start, step, stop")
    parser.add_argument("--momentum", type=float, default=0.9, help="momentum of the thresholds")
    parser.add_argument("--gamma", type=float, default=8.0, help="how much less is kept of classes with low thresholds")
    parser.add_argument(
        "--per",
        choices=("image", "batch"),
        default="image",
        help="batch: as the published code, two images, of one size, at once",
    )
    parser.add_argument("--confident-weight", type=float, default=0.1, help="λ_c")
    parser.add_argument("--ignored-weight", type=float, default=3.0, help="λ_i")
    parser.add_argument("--source-weight", type=float, default=1.0)
    args = parser.parse_args()
    run = Run(args)
    data = open_data(args, run)
    torch.manual_seed(args.seed)
    net = build(args, data.label_map.num_classes).to(run.device)
    look_at_masks(data, run)
    student = run.wrap(net)
    store = open_store(run, data)
    if args.per == "batch":
        check_one_size(data)
    score = score_before(net, data, run)
    if args.warmup_steps:
        warm_up(net, student, data, run)
        score = evaluate(prepare(net, data, run), data, run, 0)
        run.say(f"after the warm-up: {line(score, data)}")
        note_round(run, data, 0, score=score)

    thresholds = {}
    for round in range(args.rounds):
        stage = f"round{round + 1}"
        portion = PortionSchedule(*args.portion)(round)
        settings = {"portion": portion, "momentum": args.momentum, "gamma": args.gamma, "per": args.per}
        selector = InstanceAdaptiveSelector(data.label_map.num_classes, **settings).to(run.device)
        if run.begun(stage):
            stored = store.round(round)
        else:
            stored = label_target(prepare(net, data, run), data, run, store, round, selector)
        target = Batches(data.target_with(stored.labels), run, f"{stage} target", training_transform(args.crop))
        source = Batches(data.source, run, f"{stage} source", training_transform(args.crop))

        optimizer, schedule = optimizer_of(args, net, args.steps)
        student.train()
        state = {"net": net, "optimizer": optimizer, "schedule": schedule, "selector": selector}
        for step in run.steps(stage, args.steps, **state):
            for part in range(args.accumulate):
                number = step * args.accumulate + part
                (source_images, source_labels), (target_images, labels) = source[number], target[number]
                with run.forward(student):  # the domains apart: in one batch BatchNorm would mix their statistics
                    source_loss = supervised(run, student(as_floats(source_images)), source_labels)
                    target_loss = region_guided(run, student(as_floats(target_images)), labels)
                run.learn(args.source_weight * source_loss + target_loss, optimizer, schedule)
            run.scalars(round * args.steps + step, source_loss=source_loss, target_loss=target_loss)
        score = evaluate(prepare(net, data, run), data, run, round + 1)
        run.say(f"{stage}: {line(score, data)}")
        note_round(run, data, round + 1, score=score, stored=stored, thresholds=selector.thresholds)
        thresholds[stage] = dict(zip(data.label_map.classes, selector.thresholds.tolist(), strict=True))

    run.finish(net, {**report(score, data), "thresholds": thresholds})


if __name__ == "__main__":
    main()
