"""Adapt with a teacher that is an average of the student and labels each batch anew (mean teacher, Dual Teacher, DTU).

In each step the teacher labels target images, classes of other images are pasted onto them (of labelled source images,
as in DACS, or of other target images), and the student learns from both. ``--teacher dual`` takes turns between two
temporary teachers, one with CutMix and one with ClassMix; ``--teacher dynamic`` moves the teacher only when the student
has improved on recent target batches. The student is what is evaluated and saved.

Differs from the papers: ClassMix pastes the smaller half of an odd number of classes for DACS, too; Dual Teacher's
consistency under block drop is left out (``selftrain_seg.teachers.drop_blocks`` has it); the teacher sees the student's
crops, and BatchNorm's statistics of the batch without ``--frozen-bn``; learning rates and steps are common to all.

``python examples/source_only.py && python examples/mean_teacher.py --init runs/source_only/model.pt``
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from _common.evaluation import evaluate, line, score_before, summary
from _common.loading import as_floats
from _common.run import Run
from _common.settings import Settings, command_line, parse
from _data.augmentation import mark_padding, relit, training_transform
from _data.checks import check_pasting, look_at_masks
from _data.opening import open_data
from _networks.build import build
from _reporting import three_channels
from kornia.augmentation import AugmentationSequential, ColorJiggle, RandomGaussianBlur

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.losses import cross_entropy
from selftrain_seg.mining import class_mix
from selftrain_seg.selectors import select_fixed
from selftrain_seg.teachers import AgreementStatistics, DualTeacher, DynamicTeacher, MeanTeacher
from selftrain_seg.visualize import mixing_sheet, record_picture


@dataclass(kw_only=True)
class MeanTeacherSettings(Settings):
    """Settings of the online teachers."""

    teacher: Literal["mean", "dual", "dynamic"] = "mean"  # an average; two in turns; one that follows if it helps
    paste_from: Literal["source", "target"] = "source"  # what is mixed into target images
    momentum: float = 0.99  # of the teacher
    threshold: float = 0.968  # the share of pixels above it weighs the target's loss
    turn: int = 1000  # steps between switches of the dual teacher
    score: Literal["snd", "entropy"] = "snd"  # of the dynamic teacher
    dynamic_update: tuple[int, int, int] = (9, 3, 30)  # its batches stored at the first decision, between two, at most
    jitter: tuple[float, float, float, float] = (0.3, 0.3, 0.3, 0.05)  # of the colours that the student sees
    jitter_chance: float = 1.0  # share of images whose colours change
    blur_sigma: tuple[float, float] = (0.1, 1.0)  # of blurred images, in pixels
    blur_chance: float = 0.3  # share of images that are blurred


@command_line
def main() -> None:
    settings = parse(MeanTeacherSettings, __doc__)
    run = Run(settings)
    check_pasting(run)
    data = open_data(settings, run)
    torch.manual_seed(settings.seed)
    net = build(settings, data.label_map.num_classes)
    look_at_masks(data, run)
    # In train mode BatchNorm sees the batch: the running statistics would be a mixture of both domains.
    how = {"momentum": settings.momentum, "train_mode": not settings.frozen_bn}
    if settings.teacher == "mean":
        teacher: MeanTeacher | DualTeacher | DynamicTeacher = MeanTeacher(net, sync_buffers=True, **how)
    elif settings.teacher == "dual":
        teacher = DualTeacher(net, sync_buffers=True, **how)
    else:
        first, every, most = settings.dynamic_update
        teacher = DynamicTeacher(net, score=settings.score, first=first, every=every, most=most, **how)
    student, optimizer, teacher = run.prepare(net), run.optimizer(net), teacher.to(run.device)
    run.register(teacher=teacher)
    run.restore()
    run.expect(settings.steps)
    score_before(net, data, run)

    transform = training_transform(settings.crop, scale=settings.scale_range, jitter=settings.colour_jitter)
    source = run.loader(data.source, "source", transform)
    target = run.loader(data.target, "target", mark_padding(transform))
    side = 2 * math.ceil(settings.blur_sigma[1]) + 1
    strong = AugmentationSequential(
        ColorJiggle(*settings.jitter, p=settings.jitter_chance),
        RandomGaussianBlur((side, side), settings.blur_sigma, p=settings.blur_chance),
        data_keys=["input"],
    )
    if data.target[0][0].shape[0] != 3:  # of other channels, none is a colour
        strong = functools.partial(relit, strength=settings.jitter[0])
    agreement = AgreementStatistics(data.label_map.num_classes).to(run.device)
    student.train()
    steps = run.steps(settings.teacher, settings.steps, source, target)
    for step, (source_images, source_labels), (target_images, padding) in steps:
        if run.is_first_pass:
            if settings.teacher == "dual" and step and step % settings.turn == 0:
                teacher.switch()
            if settings.teacher != "dynamic":
                teacher.update(net)
        source_images, target_images = as_floats(source_images), as_floats(target_images)
        with run.autocast():
            teacher_logits = teacher(target_images)
        valid = padding != IGNORE_INDEX
        pseudo = select_fixed(teacher_logits, threshold=settings.threshold, weigh_by="batch", valid=valid)
        mix = teacher.mixing if settings.teacher == "dual" else class_mix
        other = (source_images, source_labels) if settings.paste_from == "source" else None
        mixed = mix(target_images, pseudo.labels, pixel_weight=pseudo.pixel_weight, source=other)
        if settings.teacher == "dynamic" and run.is_first_pass:
            teacher.observe(target_images, net)  # before the student learns from it
        with run.accumulate(student):
            # The domains go through the network apart: in one batch BatchNorm would mix their statistics.
            total = cross_entropy(student(source_images), source_labels, reduction="sum")
            source_loss = run.mean(total, (source_labels != IGNORE_INDEX).sum())
            logits = student(as_floats(strong(mixed.images)))
            # Divided by all pixels, as published: the fewer have labels, the less these count.
            target_loss = cross_entropy(logits, mixed.labels, pixel_weight=mixed.pixel_weight, normalize="all")
            loss = source_loss + target_loss
            run.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if settings.teacher == "dynamic" and run.is_last_pass:
            teacher.update(net)
        if step % settings.log_every == 0:
            # Where something was pasted the student saw another image; NaN is not counted.
            agreement.update(teacher_logits.masked_fill(mixed.pasted[:, None], torch.nan), logits.detach())
            run.log(loss=loss, agreement=agreement.compute().share, weight=pseudo.pixel_weight.mean())
            agreement.reset()
        if run.main and step + 1 == settings.steps:
            pasted = mixed._replace(images=three_channels(mixed.images))
            sheet = mixing_sheet(three_channels(target_images), pseudo.labels, pasted, data.label_map.palette)
            record_picture(run.out, "mixing", sheet)

    score = evaluate(net, data, run, 1)
    run.say(f"round 1: {settings.teacher} teacher: {line(score, data)}")
    run.finish(net, summary(score, data))


if __name__ == "__main__":
    main()
