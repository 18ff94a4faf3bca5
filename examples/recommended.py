"""The recommended recipe: careful self-training that says at the end whether it was of use.

A mean teacher labels target images, and the student learns from source images and from target images in other colours.
The share of pixels that the teacher is sure of weighs the target's loss, so a teacher in doubt teaches little. With
``--paste-from``, classes of other images are pasted onto target images (ClassMix).

``--rare-from-source 0.03`` protects classes that cover less than 3 % of the source. Teachers overlook some of their
pixels, and teach that these are something else. So target pixels that may be of such a class are ignored, and the
pixels of such classes in source images are pasted onto target images. ``--evaluated teacher`` measures and saves the
teacher, whose weights are an average.

Every ``--eval-every`` steps the mIoU on held-out source images in the colours of target images is measured. At the end
``kept.pt`` holds the weights that this check chose without target labels: those before training, if nothing helped.

This is no paper's recipe: it combines published parts (mean teacher, DACS, class-wise pasting, mixed BatchNorm). On the
embedded benchmark it is among the best trainers (docs/results.md). On photographs, a pre-trained network gained 3 to 5
points over its control (docs/results_real.md); there the check keeps the adapted network unless its score falls by a
point (``--check-tolerance -1``), since the score shows harm rather than gain. ``--target-weight 0`` learns from source
images alone, though BatchNorm that is not frozen still sees target images.

``python examples/source_only.py && python examples/recommended.py --init runs/source_only/model.pt``. With other data
than the embedded benchmark, add ``--check restyled`` to the first command, so that both hold out the same images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from _common.evaluation import evaluate, line, predict_labels, score_before, summary
from _common.loading import as_floats
from _common.rounds import rare_class_order
from _common.run import Run
from _common.settings import Settings, command_line, parse
from _data.augmentation import mark_padding, relit, training_transform
from _data.checks import check_pasting, look_at_masks, rare_source_classes
from _data.opening import open_data
from _networks.build import build
from torch import Tensor

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.losses import cross_entropy
from selftrain_seg.mining import class_mix
from selftrain_seg.restyle import match_moments
from selftrain_seg.selectors import select_fixed
from selftrain_seg.teachers import MeanTeacher
from selftrain_seg.views import StrongSettings, WeakStrongViews

_RARE_CHANCE = 0.05  # of a pixel to be of a rare class, at which it is left to the source


@dataclass(kw_only=True)
class RecommendedSettings(Settings):
    """Settings of the recommended recipe."""

    restyled_share: float = 0.0  # of source images that get the colours of a target image; the check favours these
    momentum: float = 0.99  # of the teacher
    threshold: float = 0.9  # the share of pixels above it weighs the target's loss
    target_weight: float = 1.0  # of the loss on target images
    paste_from: Literal["source", "target", "none"] = "source"  # what is pasted into target images
    jitter: float = 0.3  # how much the colours of target images change for the student; 0: not at all
    rare_temperature: float = 0.0  # of rare-class sampling of source images; 0: all are drawn alike
    rare_from_source: float = 0.0
    """classes below this share of the source's pixels are learnt from source pixels, which are pasted onto target
    images; target pixels with a chance above 0.05 of being of such a class are ignored; 0: off"""
    evaluated: Literal["student", "teacher"] = "student"  # which of the two is measured and saved


def restyled(images: Tensor, targets: Tensor, share: float) -> Tensor:
    """Give a share of the source images the colours of a target image of the batch."""
    styles = targets[torch.randint(len(targets), (len(images),))]
    chosen = torch.rand(len(images), 1, 1, 1) < share
    if not chosen.any():
        return images
    return torch.where(chosen.to(images.device), match_moments(images, styles, clip=True), images)


def may_be_of(logits: Tensor, classes: Tensor) -> Tensor:
    """(B, H, W) bool: whether the probabilities of some classes add up to more than 0.05."""
    return logits.softmax(dim=1).index_select(1, classes).sum(dim=1) > _RARE_CHANCE


@command_line
def main() -> None:
    settings = parse(RecommendedSettings, __doc__)
    run = Run(settings)
    check_pasting(run)
    data = open_data(settings, run)
    num_classes = data.label_map.num_classes
    torch.manual_seed(settings.seed)
    net = build(settings, num_classes)
    look_at_masks(data, run)
    # In train mode BatchNorm sees the batch: the running statistics would be a mixture of both domains.
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

    jitter, coloured = settings.jitter, data.target[0][0].shape[0] == 3  # of other channels, none is a colour
    noise = StrongSettings(
        jitter=(jitter, jitter, jitter, min(jitter / 6, 0.5)),
        jitter_chance=1.0,
        grey_chance=0.0,
        blur_sigma_px=(0.1, 1.0),
        blur_chance=0.3,
        cut_out_chance=0.0,
    )
    views = WeakStrongViews(settings.crop, scale=(1.0, 1.0), flip_chance=0.0, strong=noise)
    rare = rare_source_classes(data, run, settings.rare_from_source).to(run.device)
    student.train()
    steps = run.steps("adaptation", settings.steps, source, target)
    for _, (source_images, source_labels), (target_images, padding) in steps:
        if run.is_first_pass:
            teacher.update(net)
        source_images, target_images = as_floats(source_images), as_floats(target_images)
        source_images = as_floats(restyled(source_images, target_images, settings.restyled_share))
        teacher_logits = predict_labels(teacher, target_images, run)
        valid = padding != IGNORE_INDEX
        pseudo = select_fixed(teacher_logits, threshold=settings.threshold, weigh_by="batch", valid=valid)
        seen, labels, weight = target_images, pseudo.labels, pseudo.pixel_weight
        if settings.rare_from_source:
            labels = labels.where(~may_be_of(teacher_logits, rare), IGNORE_INDEX)
        if settings.paste_from != "none":
            other = (source_images, source_labels) if settings.paste_from == "source" else None
            mixed = class_mix(seen, labels, pixel_weight=weight, source=other)
            seen, labels, weight = mixed.images, mixed.labels, mixed.pixel_weight
        if settings.rare_from_source:
            mixed = class_mix(seen, labels, pixel_weight=weight, source=(source_images, source_labels), classes=rare)
            seen, labels, weight = mixed.images, mixed.labels, mixed.pixel_weight
        if jitter:
            seen = views.strong(seen, views.draw(seen)) if coloured else relit(seen, jitter)
        with run.accumulate(student):
            # The domains go through the network apart: in one batch BatchNorm would mix their statistics.
            total = cross_entropy(student(source_images), source_labels, reduction="sum")
            source_loss = run.mean(total, (source_labels != IGNORE_INDEX).sum())
            # Divided by all pixels: the fewer have labels, the less these count.
            target_loss = cross_entropy(student(as_floats(seen)), labels, pixel_weight=weight, normalize="all")
            run.backward(source_loss + settings.target_weight * target_loss)
            optimizer.step()
            optimizer.zero_grad()
        run.log(source_loss=source_loss, target_loss=target_loss, weight=pseudo.pixel_weight.mean())

    score = evaluate(evaluated, data, run, 1)
    run.say(f"round 1: {line(score, data)}")
    run.finish(evaluated, summary(score, data))


if __name__ == "__main__":
    main()
