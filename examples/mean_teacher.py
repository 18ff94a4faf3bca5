"""Online self-training: a moving average of the student labels each batch (mean teacher, Dual Teacher, DTU).

In each step the teacher labels target images, and classes of other images are pasted onto them: from labelled source
images, as in DACS, or from other target images. The student learns from these and from source images. ``--teacher
dual`` alternates between two temporary teachers, one with CutMix and one with ClassMix. ``--teacher dynamic`` updates
the teacher only when the student has improved on recent target batches. The student is evaluated and saved.

Differs from the papers: with an odd number of classes, ClassMix pastes the smaller half, also for DACS; Dual Teacher's
consistency under block drop is missing (``selftrain_seg.teachers.drop_blocks`` has it); the teacher sees the student's
crops, and without ``--frozen-bn`` its BatchNorm uses the statistics of the batch; all teachers share one learning rate
and number of steps.

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
from _common.losses import supervised_loss
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

    teacher: Literal["mean", "dual", "dynamic"] = "mean"
    """mean: an average of the student's weights; dual: two of them in turns; dynamic: one that is updated only if the
    student improves"""
    paste_from: Literal["source", "target"] = "source"  # images whose classes are pasted onto target images
    momentum: float = 0.99  # momentum of the teacher
    threshold: float = 0.968  # confidence of a sure pixel; the share of sure pixels is the weight of the target loss
    turn: int = 1000  # dual: steps between switches
    score: Literal["snd", "entropy"] = "snd"  # dynamic: score by which the student must improve
    dynamic_update: tuple[int, int, int] = (9, 3, 30)
    """dynamic: batches before the first decision, between two decisions, and at most until the next update"""
    jitter: tuple[float, float, float, float] = (0.3, 0.3, 0.3, 0.05)  # colour jitter of the student's target images
    jitter_chance: float = 1.0  # share of images whose colours change
    blur_sigma: tuple[float, float] = (0.1, 1.0)  # range of the blur's standard deviation, in pixels
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
    # In train mode, BatchNorm uses the statistics of the batch. The running statistics mix both domains.
    average = {"momentum": settings.momentum, "train_mode": not settings.frozen_bn}
    if settings.teacher == "mean":
        teacher: MeanTeacher | DualTeacher | DynamicTeacher = MeanTeacher(net, sync_buffers=True, **average)
    elif settings.teacher == "dual":
        teacher = DualTeacher(net, sync_buffers=True, **average)
    else:
        first, every, most = settings.dynamic_update
        teacher = DynamicTeacher(net, score=settings.score, first=first, every=every, most=most, **average)
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
    if data.target[0][0].shape[0] != 3:  # not RGB
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
        paste_from = (source_images, source_labels) if settings.paste_from == "source" else None
        mixed = mix(target_images, pseudo.labels, pixel_weight=pseudo.pixel_weight, source=paste_from)
        if settings.teacher == "dynamic" and run.is_first_pass:
            teacher.observe(target_images, net)  # before the student learns from them
        with run.accumulate(student):
            # Separate forward passes: in a joint batch, BatchNorm would mix the statistics of the two domains.
            source_loss = supervised_loss(run, student(source_images), source_labels)
            logits = student(as_floats(strong(mixed.images)))
            # The target loss is divided by all pixels, as published, so a batch with few labels has less weight.
            target_loss = cross_entropy(logits, mixed.labels, pixel_weight=mixed.pixel_weight, normalize="all")
            loss = source_loss + target_loss
            run.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if settings.teacher == "dynamic" and run.is_last_pass:
            teacher.update(net)
        if step % settings.log_every == 0:
            # Leave out pasted pixels, where the student saw another image: NaN is not counted.
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
