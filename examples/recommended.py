"""The recommended recipe: a mean teacher, and a check without target labels of whether adaptation helped.

The teacher labels target images. The student learns from source images and from recoloured target images. The share of
pixels that the teacher is sure of is the weight of the target loss, so an unsure teacher has little effect.
``--paste-from`` pastes classes of other images onto target images (ClassMix).

``--rare-from-source 0.03`` protects classes that cover less than 3 % of the source pixels. A teacher misses some of
their pixels and labels them as other classes. So target pixels that may belong to such a class are ignored, and pixels
of such classes in source images are pasted onto target images. ``--evaluated teacher`` evaluates and saves the teacher,
whose weights are an average of the student's.

Every ``--eval-every`` steps, the check measures the mIoU on held-out source images in the colours of target images.
At the end, ``kept.pt`` holds the weights with the best score, or those before training if none is better.

The recipe is from no paper. It combines mean teacher, DACS, class-wise pasting and mixed BatchNorm; its results are in
docs/results.md and docs/results_real.md. ``--target-weight 0`` removes the target loss and leaves the rest as it is, so
BatchNorm that is not frozen still uses target images.

``python examples/source_only.py && python examples/recommended.py --init runs/source_only/model.pt``. With data other
than the synthetic benchmark, add ``--check restyled`` to the first command, so that both hold out the same images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from _common.evaluation import evaluate, line, predict_labels, score_before, summary
from _common.loading import as_floats
from _common.losses import supervised_loss
from _common.run import Run
from _common.settings import Settings, command_line, parse
from _data.augmentation import mark_padding, relit, training_transform
from _data.checks import check_pasting, look_at_masks
from _data.opening import open_data
from _labelling.rare import rare_class_order, rare_source_classes
from _networks.build import build
from torch import Tensor

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.losses import cross_entropy
from selftrain_seg.mining import class_mix
from selftrain_seg.restyle import match_moments
from selftrain_seg.selectors import select_fixed
from selftrain_seg.teachers import MeanTeacher
from selftrain_seg.views import StrongSettings, WeakStrongViews


@dataclass(kw_only=True)
class RecommendedSettings(Settings):
    """Settings of the recommended recipe."""

    restyled_share: float = 0.0  # share of source images that get the colours of a target image; the check favours it
    momentum: float = 0.99  # momentum of the teacher
    threshold: float = 0.9  # confidence of a sure pixel; the share of sure pixels is the weight of the target loss
    target_weight: float = 1.0  # further weight of the target loss
    paste_from: Literal["source", "target", "none"] = "source"  # images whose classes are pasted onto target images
    jitter: float = 0.3  # strength of the colour jitter of the student's target images; 0 disables it
    rare_temperature: float = 0.0  # temperature of rare-class sampling of source images; 0 samples uniformly
    rare_from_source: float = 0.0
    """classes below this share of the source pixels are learnt from source pixels, which are pasted onto target images;
    target pixels that belong to such a class with a probability above 0.05 are ignored; 0 disables this"""
    evaluated: Literal["student", "teacher"] = "student"  # network that is evaluated and saved


def restyled(images: Tensor, targets: Tensor, share: float) -> Tensor:
    """Give a share of the source images the colours of random target images of the batch."""
    drawn, chosen = torch.randint(len(targets), (len(images),)), torch.rand(len(images), 1, 1, 1) < share
    if not chosen.any():
        return images
    drawn, chosen = (each.to(images.device, non_blocking=True) for each in (drawn, chosen))
    return torch.where(chosen, match_moments(images, targets[drawn], clip=True), images)


def may_be_of(logits: Tensor, classes: Tensor, probability: float = 0.05) -> Tensor:
    """Return (B, H, W) bool: whether a pixel belongs to one of the classes with more than this probability."""
    return logits.softmax(dim=1).index_select(1, classes).sum(dim=1) > probability


@command_line
def main() -> None:
    settings = parse(RecommendedSettings, __doc__)
    run = Run(settings)
    check_pasting(run)
    data = open_data(settings, run)
    torch.manual_seed(settings.seed)
    net = build(settings, data.label_map.num_classes)
    look_at_masks(data, run)
    # In train mode, BatchNorm uses the statistics of the batch. The running statistics mix both domains.
    teacher = MeanTeacher(net, momentum=settings.momentum, train_mode=not settings.frozen_bn, sync_buffers=True)
    student, optimizer, teacher = run.prepare(net), run.optimizer(net), teacher.to(run.device)
    run.register(teacher=teacher)
    run.restore()
    run.expect(settings.steps)
    evaluated = teacher.model if settings.evaluated == "teacher" else net
    score_before(evaluated, data, run)

    order = rare_class_order(data, run, settings.rare_temperature) if settings.rare_temperature else None
    transform = training_transform(settings.crop, scale=settings.scale_range, jitter=settings.colour_jitter)
    source = run.loader(data.source, "source", transform, order)
    target = run.loader(data.target, "target", mark_padding(transform))

    jitter, is_rgb = settings.jitter, data.target[0][0].shape[0] == 3
    colours = (jitter, jitter, jitter, min(jitter / 6, 0.5))
    strong = StrongSettings(
        colours, jitter_chance=1.0, grey_chance=0.0, blur_sigma_px=(0.1, 1.0), blur_chance=0.3, cut_out_chance=0.0
    )
    views = WeakStrongViews(settings.crop, scale=(1.0, 1.0), flip_chance=0.0, strong=strong)
    rare = rare_source_classes(data, run, settings.rare_from_source).to(run.device)
    student.train()
    steps = run.steps("adaptation", settings.steps, source, target)
    for _, (source_images, source_labels), (target_images, padding) in steps:
        if run.is_first_pass:
            teacher.update(net)
        source_images, target_images = as_floats(source_images), as_floats(target_images)
        source_images = as_floats(restyled(source_images, target_images, settings.restyled_share))
        source_batch = (source_images, source_labels)
        teacher_logits = predict_labels(teacher, target_images, run)
        valid = padding != IGNORE_INDEX
        pseudo = select_fixed(teacher_logits, threshold=settings.threshold, weigh_by="batch", valid=valid)
        images, labels, weight = target_images, pseudo.labels, pseudo.pixel_weight
        if settings.rare_from_source:
            labels = labels.where(~may_be_of(teacher_logits, rare), IGNORE_INDEX)
        if settings.paste_from != "none":
            paste_from = source_batch if settings.paste_from == "source" else None
            mixed = class_mix(images, labels, pixel_weight=weight, source=paste_from)
            images, labels, weight = mixed.images, mixed.labels, mixed.pixel_weight
        if settings.rare_from_source:
            mixed = class_mix(images, labels, pixel_weight=weight, source=source_batch, classes=rare)
            images, labels, weight = mixed.images, mixed.labels, mixed.pixel_weight
        if jitter:
            images = views.strong(images, views.draw(images)) if is_rgb else relit(images, jitter)
        with run.accumulate(student):
            # Separate forward passes: in a joint batch, BatchNorm would mix the statistics of the two domains.
            source_loss = supervised_loss(run, student(source_images), source_labels)
            # The target loss is divided by all pixels, so a batch with few labels has less weight.
            target_loss = cross_entropy(student(as_floats(images)), labels, pixel_weight=weight, normalize="all")
            run.backward(source_loss + settings.target_weight * target_loss)
            optimizer.step()
            optimizer.zero_grad()
        run.log(source_loss=source_loss, target_loss=target_loss, weight=pseudo.pixel_weight.mean())

    score = evaluate(evaluated, data, run, 1)
    run.say(f"round 1: {line(score, data)}")
    run.finish(evaluated, summary(score, data))


if __name__ == "__main__":
    main()
