"""MIC on the recipe of DAFormer: masked image consistency (Hoyer et al., CVPR 2023, arXiv:2212.01322).

A mean teacher labels target images. The student learns from three kinds of images: source images, of which those with
rare classes are drawn more often (rare-class sampling); target images with half of the classes of a source image pasted
onto them (ClassMix); and target images with most patches hidden, whose labels it must infer from the context (MIC). The
share of pixels that the teacher is sure of is the weight of the last two losses. ``--mask-weight 0`` is DAFormer (Hoyer
et al., CVPR 2022, arXiv:2111.14887). The student is evaluated and saved.

Differs from the published code: there is no feature distance to an ImageNet model, no second crop if the first misses
the rare class, and no HRDA; source images are resized to the size of target images. The default network is DeepLabV2;
the closest one to DAFormer's is a SegFormer, ``--network hf:FOLDER``.

``python examples/source_only.py && python examples/mic.py --init runs/source_only/model.pt``
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from _common.evaluation import evaluate, line, score_before, summary
from _common.loading import as_floats
from _common.run import Run
from _common.settings import Settings, command_line, parse
from _data.augmentation import mark_padding, training_transform
from _data.checks import look_at_masks
from _data.opening import open_data
from _labelling.rare import rare_class_order
from _networks.build import Scaled, build

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.losses import cross_entropy
from selftrain_seg.mining import class_mix
from selftrain_seg.selectors import select_fixed
from selftrain_seg.teachers import MeanTeacher
from selftrain_seg.views import StrongSettings, WeakStrongViews, mask_patches


@dataclass(kw_only=True)
class MICSettings(Settings):
    """Settings of MIC."""

    momentum: float = 0.999  # momentum of the teacher
    threshold: float = 0.968  # confidence of a sure pixel; the share of sure pixels is the weight of the target losses
    temperature: float = 0.01  # temperature of rare-class sampling; the lower, the more often the rarest class is drawn
    ignored_rows: tuple[int, int] = (0, 0)  # rows at the top and bottom of target crops whose labels are ignored
    mask_weight: float = 1.0  # weight of the loss on masked images; 0 disables it
    mask_ratio: float = 0.7  # share of patches that are hidden
    patch: int = 32  # side of a patch, in pixels
    jitter: float = 0.2  # strength of the jitter of brightness, contrast, saturation and hue (at most 0.5 for the hue)


@command_line
def main() -> None:
    settings = parse(MICSettings, __doc__)
    run = Run(settings)
    data = open_data(settings, run)
    num_classes = data.label_map.num_classes
    torch.manual_seed(settings.seed)
    net = build(settings, num_classes)
    look_at_masks(data, run)
    # In train mode, BatchNorm uses the statistics of the batch. The running statistics mix both domains.
    teacher = MeanTeacher(net, momentum=settings.momentum, train_mode=not settings.frozen_bn, sync_buffers=True)
    student, optimizer, teacher = run.prepare(net), run.optimizer(net), teacher.to(run.device)
    run.register(teacher=teacher)
    run.restore()
    run.expect(settings.steps)
    score_before(net, data, run)

    transform = training_transform(settings.crop, scale=settings.scale_range, jitter=settings.colour_jitter)
    source = run.loader(data.source, "source", transform, rare_class_order(data, run, settings.temperature))
    target = run.loader(data.target, "target", mark_padding(transform))

    strong = StrongSettings(
        jitter=(*(settings.jitter,) * 3, min(settings.jitter, 0.5)),
        grey_chance=0.0,
        blur_sigma_px=(0.15, 1.15),
        blur_chance=0.5,
        cut_out_chance=0.0,
    )
    views = WeakStrongViews(settings.crop, scale=(1.0, 1.0), flip_chance=0.0, strong=strong)
    hidden_colour = net.mean.flatten() if isinstance(net, Scaled) else 0.5  # 0 after normalisation
    top, bottom = settings.ignored_rows
    student.train()
    steps = run.steps("adaptation", settings.steps, source, target)
    for _, (source_images, source_labels), (target_images, padding) in steps:
        if run.is_first_pass:
            teacher.update(net)
        source_images, target_images = as_floats(source_images), as_floats(target_images)
        with run.autocast():
            teacher_logits = teacher(target_images)
        valid = padding != IGNORE_INDEX
        pseudo = select_fixed(teacher_logits, threshold=settings.threshold, weigh_by="batch", valid=valid)
        weight = pseudo.pixel_weight
        weight[:, :top] = 0
        weight[:, weight.shape[1] - bottom :] = 0
        mixed = class_mix(
            target_images, pseudo.labels, pixel_weight=weight, source=(source_images, source_labels), rounding="ceil"
        )
        with run.accumulate(student):
            # Separate forward passes: in a joint batch, BatchNorm would mix the statistics of the two domains.
            source_loss = cross_entropy(student(source_images), source_labels, normalize="all")
            recoloured = views.strong(mixed.images, views.draw(mixed.images))
            mixed_loss = cross_entropy(
                student(recoloured), mixed.labels, pixel_weight=mixed.pixel_weight, normalize="all"
            )
            loss = source_loss + mixed_loss
            masked_loss = torch.zeros((), device=run.device)
            if settings.mask_weight:
                recoloured = views.strong(target_images, views.draw(target_images))
                masked, _ = mask_patches(recoloured, settings.patch, settings.mask_ratio, value=hidden_colour)
                masked_loss = cross_entropy(student(masked), pseudo.labels, pixel_weight=weight, normalize="all")
                loss = loss + settings.mask_weight * masked_loss
            run.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        run.log(loss=loss, mixed_loss=mixed_loss, masked_loss=masked_loss, weight=weight.mean())

    score = evaluate(net, data, run, 1)
    run.say(f"round 1: {line(score, data)}")
    run.finish(net, summary(score, data))


if __name__ == "__main__":
    main()
