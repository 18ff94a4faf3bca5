"""Adapt with a teacher that is an average of the student and labels each batch anew (mean teacher, Dual Teacher, DTU).

In each step the teacher labels target images, classes of other images are pasted onto them (of labelled source images,
as in DACS, or of other target images), and the student learns from both. ``--teacher dual`` takes turns between two
temporary teachers, one with CutMix and one with ClassMix; ``--teacher dynamic`` moves the teacher only when the student
has improved on recent target batches.

Differs from the papers: ClassMix pastes the smaller half of an odd number of classes for DACS, too; Dual Teacher's
consistency under block drop is left out (``selftrain_seg.teachers.drop_blocks`` has it); the teacher sees the student's
crops, and BatchNorm's statistics of the batch without ``--frozen-bn``; learning rates and steps are common to all.

``python examples/source_only.py && python examples/mean_teacher.py --init runs/source_only/model.pt``
"""

from __future__ import annotations

import torch
from _common import arguments
from _common.evaluation import evaluate, line, prepare, report, score_before, visible
from _common.folders import look_at_masks, open_data, relit, training_transform
from _common.loading import Batches, as_floats
from _common.networks import build, optimizer_of
from _common.rounds import note_round
from _common.run import Run
from kornia.augmentation import AugmentationSequential, ColorJiggle, RandomGaussianBlur

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.losses import cross_entropy
from selftrain_seg.mining import class_mix
from selftrain_seg.selectors import select_fixed
from selftrain_seg.teachers import AgreementStatistics, DualTeacher, DynamicTeacher, MeanTeacher
from selftrain_seg.visualize import mixing_sheet, record_picture


def main() -> None:
    parser = arguments.parser(
        __doc__,
        small={
            "steps": 360,
            "batch": 4,
            "lr": 2e-3,
            "reestimate_bn": 1,
            "threshold": 0.9,
            "turn": 60,
            "paste_from": "target",
        },
        papers={
            "steps": 40000,
            "batch": 2,
            "lr": 2.5e-4,
            "optimizer": "sgd",
            "largest_crop": [512, 512],
            "threshold": 0.968,
        },
    )
    parser.add_argument("--teacher", choices=("mean", "dual", "dynamic"), default="mean")
    parser.add_argument(
        "--paste-from", choices=("source", "target"), default="source", help="what is mixed into target images"
    )
    parser.add_argument("--momentum", type=float, default=0.99)
    parser.add_argument("--threshold", type=float, help="the share of pixels above it weighs the target's loss")
    parser.add_argument("--turn", type=int, default=1000, help="steps between switches of the dual teacher")
    parser.add_argument("--score", choices=("snd", "entropy"), default="snd", help="of the dynamic teacher")
    args = parser.parse_args()
    run = Run(args)
    if args.paste_from == "target" and args.batch == run.world:
        raise SystemExit("--paste-from target: a process pastes between its own images, and --batch gives each but one")
    data = open_data(args, run)
    torch.manual_seed(args.seed)
    net = build(args, data.label_map.num_classes).to(run.device)
    look_at_masks(data, run)
    student = run.wrap(net)
    score_before(net, data, run)

    # In train mode BatchNorm sees the batch: the running statistics would be a mixture of both domains.
    settings = {"momentum": args.momentum, "train_mode": not args.frozen_bn}
    # All processes keep a teacher, and a checkpoint holds one of them: their buffers must be the same.
    if args.teacher == "mean":
        teacher: MeanTeacher | DualTeacher | DynamicTeacher = MeanTeacher(net, sync_buffers=True, **settings)
    elif args.teacher == "dual":
        teacher = DualTeacher(net, sync_buffers=True, **settings)
    else:
        teacher = DynamicTeacher(net, score=args.score, **settings)

    optimizer, schedule = optimizer_of(args, net, args.steps)
    source = Batches(data.source, run, "source", training_transform(args.crop))
    target = Batches(data.target, run, "target", training_transform(args.crop))
    strong = AugmentationSequential(
        ColorJiggle(0.3, 0.3, 0.3, 0.05, p=1.0), RandomGaussianBlur((3, 3), (0.1, 1.0), p=0.3), data_keys=["input"]
    )
    recolour = strong if data.target[0][0].shape[0] == 3 else relit  # of other channels, none is a colour
    agreement = AgreementStatistics(data.label_map.num_classes).to(run.device)
    student.train()
    state = {"net": net, "teacher": teacher, "optimizer": optimizer, "schedule": schedule}
    for step in run.steps(args.teacher, args.steps, **state):
        if args.teacher == "dual" and step and step % args.turn == 0:
            teacher.switch()
        if args.teacher != "dynamic":
            teacher.update(net)
        for part in range(args.accumulate):
            (source_images, source_labels), (target_images, _) = (
                batches[step * args.accumulate + part] for batches in (source, target)
            )
            source_images, target_images = as_floats(source_images), as_floats(target_images)
            teacher_logits = teacher(target_images)
            pseudo = select_fixed(teacher_logits, threshold=args.threshold, weigh_by="batch")
            mix = teacher.mixing if args.teacher == "dual" else class_mix
            other = (source_images, source_labels) if args.paste_from == "source" else None
            mixed = mix(target_images, pseudo.labels, pixel_weight=pseudo.pixel_weight, source=other)
            with run.forward(student):
                # The domains go through the network apart: in one batch BatchNorm would mix their statistics.
                total = cross_entropy(student(source_images), source_labels, reduction="sum")
                source_loss = run.mean(total, (source_labels != IGNORE_INDEX).sum())
                logits = student(as_floats(recolour(mixed.images)))
                # Divided by all pixels, as published: the fewer have labels, the less these count.
                target_loss = cross_entropy(logits, mixed.labels, pixel_weight=mixed.pixel_weight, normalize="all")
            loss = source_loss + target_loss
            if args.teacher == "dynamic" and part == 0:
                teacher.observe(target_images, net)  # before the student learns from it
            run.learn(loss, optimizer, schedule)
        if args.teacher == "dynamic":
            teacher.update(net)
        if step % 10 == 0:
            # Where something was pasted the student saw another image; NaN is not counted.
            agreement.update(teacher_logits.masked_fill(mixed.pasted[:, None], torch.nan), logits.detach())
            run.scalars(step, loss=loss, agreement=agreement.compute().share, weight=pseudo.pixel_weight.mean())
            agreement.reset()
        if run.main and step + 1 == args.steps:
            shown = mixed._replace(images=visible(mixed.images))
            sheet = mixing_sheet(visible(target_images), pseudo.labels, shown, data.label_map.palette)
            record_picture(run.out, "mixing", sheet)

    score = evaluate(prepare(net, data, run), data, run, 1)
    run.say(f"{args.teacher} teacher: {line(score, data)}")
    note_round(run, data, 1, score=score)
    run.finish(net, report(score, data))


if __name__ == "__main__":
    main()
