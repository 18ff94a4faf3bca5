"""SAC: self-supervised augmentation consistency (Araslanov and Roth, CVPR 2021, arXiv:2105.00097).

A slow teacher predicts each target image in several views, mirrored and zoomed in. Its probabilities are averaged in
the frame of the image, and the student learns this average in recoloured views. A pixel is selected if its confidence
is high for its class. Pixels weigh more if the teacher is more confident, and if their class is rarer. Target images
with rare classes are drawn more often, by the labels that the network gives them before it adapts. SAC starts from a
network with BatchNorm statistics of the target ("ABN"), which is round 0 of the report. The student is evaluated and
saved.

Differs from the published code: the running confidence follows the averaged probabilities, not those of each view;
the target statistics are estimated after training on source images, not during it; each step has as many source as
target images, and each target image is seen in ``--views`` views; the colours of source images are not renormalised.
Without ``--frozen-bn`` the teacher's BatchNorm uses the statistics of the batch.

``python examples/source_only.py && python examples/sac.py --init runs/source_only/model.pt``
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from _common.evaluation import evaluate, line, ready_to_predict, score_before, summary
from _common.loading import as_floats
from _common.run import Run
from _common.settings import Settings, command_line, parse
from _data.augmentation import mark_padding, training_transform
from _data.checks import look_at_masks
from _data.opening import open_data
from _labelling.drawing import sampler_options
from _labelling.rounds import finished, open_store, write_labels
from _networks.build import build

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.losses import class_weighted_loss, cross_entropy, focal_class_weight
from selftrain_seg.mining import ClassIndex, ImportanceSampler
from selftrain_seg.selectors import RunningConfidenceSelector, select_hard
from selftrain_seg.teachers import MeanTeacher
from selftrain_seg.views import StrongSettings, WeakStrongViews, average_views, replay


@dataclass(kw_only=True)
class SACSettings(Settings):
    """Settings of SAC."""

    views: int = 4  # views of each target image: the whole image, and zoomed-in crops
    zoom: tuple[float, float] = (1.0, 2.0)  # range of the zoom factor
    momentum: float = 0.99  # momentum of the teacher
    teacher_every: int = 100  # steps between updates of the teacher
    target_weight: float = 5.0  # weight of the loss on target images
    upper: float = 0.75  # share of its class's peak confidence that a pixel must exceed to be labelled
    running_momentum: float = 0.99  # momentum of the running confidence
    focal: float = 3.0  # exponent of the class weights; the larger, the less frequent classes count
    uniform: float = 0.25  # share of target images that are drawn uniformly


@command_line
def main() -> None:
    settings = parse(SACSettings, __doc__)
    run = Run(settings)
    data = open_data(settings, run)
    num_classes = data.label_map.num_classes
    torch.manual_seed(settings.seed)
    net = build(settings, num_classes)
    look_at_masks(data, run)
    batchnorm = {"buffers": "average", "train_mode": not settings.frozen_bn, "sync_buffers": True}
    teacher = MeanTeacher(net, momentum=settings.momentum, warmup=False, **batchnorm)
    selector = RunningConfidenceSelector(num_classes, upper=settings.upper, momentum=settings.running_momentum)
    student, optimizer = run.prepare(net), run.optimizer(net)
    teacher, selector = teacher.to(run.device), selector.to(run.device)
    run.register(teacher=teacher, selector=selector)
    run.restore()
    run.expect(settings.steps)
    store = open_store(run, data)
    score_before(net, data, run)

    # Label the target images with the network before adaptation. The labels decide how often each image is drawn.
    if run.has_begun("adaptation"):
        stored = store.round(0)
    else:
        net, stored = ready_to_predict(net, data, run), finished(store, 0)
        if stored is None:
            stored = write_labels(net, data, run, store, 0, functools.partial(select_hard, thresholds=0.0))
    index, options = ClassIndex(stored.counts, stored.pixels), sampler_options(run, settings.steps)
    order = list(ImportanceSampler(index, uniform=settings.uniform, seed=run.seed("importance"), **options))
    transform = training_transform(settings.crop, scale=settings.scale_range, jitter=settings.colour_jitter)
    source = run.loader(data.source, "source", transform)
    target = run.loader(data.target, "target", mark_padding(transform), order)

    strong = StrongSettings(
        jitter=(0.4, 0.4, 0.4, 0.1), jitter_chance=0.5, blur_chance=1.0, cut_out_area=(0.0, 0.0), cut_out_chance=0.0
    )
    whole = WeakStrongViews(settings.crop, scale=(1.0, 1.0), strong=strong)
    zoomed = WeakStrongViews(settings.crop, scale=settings.zoom, strong=strong)
    student.train()
    steps = run.steps("adaptation", settings.steps, source, target)
    for step, (source_images, source_labels), (images, padding) in steps:
        if run.is_first_pass and step % settings.teacher_every == 0:
            teacher.update(net)
        images = as_floats(images)
        drawn = [whole.draw(images), *(zoomed.draw(images) for _ in range(settings.views - 1))]
        views = [replay(images, parameters) for parameters in drawn]
        with run.autocast():
            teacher_logits = teacher(torch.cat(views))
        average, _ = average_views(teacher_logits.float().softmax(dim=1).chunk(len(drawn)), drawn)
        probs = torch.cat([replay(average, parameters) for parameters in drawn])
        valid = torch.cat([replay(padding != IGNORE_INDEX, parameters) for parameters in drawn])
        pseudo = selector(probs.log(), valid=valid)
        weight = focal_class_weight(selector.running_confidence, exponent=settings.focal)
        noisy = torch.cat([whole.strong(view, parameters) for view, parameters in zip(views, drawn, strict=True)])
        with run.accumulate(student):
            # Separate forward passes: in a joint batch, BatchNorm would mix the statistics of the two domains.
            # Both losses are divided by all pixels, as published.
            source_loss = cross_entropy(student(as_floats(source_images)), source_labels, normalize="all")
            target_loss = class_weighted_loss(
                student(noisy), pseudo.labels, weight, pixel_weight=pseudo.confidence, normalize="all"
            )
            run.backward(source_loss + settings.target_weight * target_loss)
            optimizer.step()
            optimizer.zero_grad()
        selected = (pseudo.labels != IGNORE_INDEX).float().mean()
        run.log(source_loss=source_loss, target_loss=target_loss, selected=selected)

    score = evaluate(net, data, run, 1, stored=stored)
    run.say(f"round 1: {line(score, data)}")
    run.finish(net, summary(score, data))


if __name__ == "__main__":
    main()
