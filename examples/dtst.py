"""DT-ST: source-free adaptation with a dynamic teacher and class-balanced images (Zhao et al., CVPR 2023).

A network that was trained on another domain adapts to target images; no source image is used. The teacher follows the
student only when the student has improved on recent batches (DTU). It labels whole target images by a running
confidence of each class, and the student also learns which classes the teacher rules out (negative learning). Labels
and probabilities are carried into the student's view, which is scaled, cropped, mirrored and recoloured. Every
``--refresh`` steps all target images are labelled (TCR). Classes whose labels are stable from one of these snapshots to
the next decide which images are drawn, and which regions are pasted into others. The teacher is evaluated and saved.

Differs from the published code: the student labels the snapshots; in the first snapshot, a class of an image counts as
stable if its mean confidence is at least the median; the pasted classes are those below ``--tail-share``, and images to
paste from are drawn separately. Without ``--frozen-bn`` the teacher's BatchNorm uses the statistics of the batch.

``python examples/source_only.py && python examples/dtst.py --init runs/source_only/model.pt``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from _common.evaluation import evaluate, line, score_before, summary
from _common.loading import as_floats
from _common.run import Run
from _common.settings import Settings, command_line, parse
from _data.augmentation import cut_squares, relit
from _data.opening import open_data
from _labelling.companions import companions_of
from _labelling.snapshots import balanced_loaders, take_snapshot
from _networks.build import build

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.losses import cross_entropy, negative_loss
from selftrain_seg.mining import ReliabilityBank, classes_below, paste_classes
from selftrain_seg.selectors import RunningConfidenceSelector
from selftrain_seg.teachers import DynamicTeacher
from selftrain_seg.views import StrongSettings, WeakStrongViews, replay


@dataclass(kw_only=True)
class DTSTSettings(Settings):
    """Settings of DT-ST."""

    train_resize: tuple[int, int] | None = None  # height and width of training images; default: their own size
    refresh: int = 3000  # steps between snapshots (TCR)
    view_scale: tuple[float, float] = (0.75, 1.75)  # range of the random scale of the student's view
    jitter: tuple[float, float, float, float] = (0.5, 0.5, 0.5, 0.2)  # colour jitter of the student's view
    jitter_chance: float = 0.8  # share of views whose colours change
    grey_chance: float = 0.2  # share of views that are turned grey
    blur_sigma: tuple[float, float] = (0.1, 1.0)  # range of the blur's standard deviation, in pixels
    blur_chance: float = 0.5  # share of views that are blurred
    cut_out_chance: float = 0.0  # share of views in which a quarter of the 32 x 32 squares is black
    momentum: float = 0.99  # momentum of the teacher
    score: Literal["snd", "entropy"] = "snd"  # score by which the student must improve (DTU)
    dynamic_update: tuple[int, int, int] = (9, 3, 30)  # DTU: batches before the first decision, between two, at most
    upper: float = 0.8  # share of its class's peak confidence that a pixel must exceed to be labelled
    negative: float = 0.5  # weight of negative learning; 0 disables it
    tail_share: float = 0.03  # classes that cover less than this share of the labelled pixels are pasted
    pastes: int = 1  # classes pasted into each image
    paste_pixels: int = 20  # smallest number of pixels of a pasted region


@command_line
def main() -> None:
    settings = parse(DTSTSettings, __doc__)
    if settings.init is None or settings.data == "voc":
        raise SystemExit("DT-ST adapts a network that was trained on another domain: expected --init")
    run = Run(settings)
    data = open_data(settings, run, source_free=True)
    num_classes = data.label_map.num_classes
    torch.manual_seed(settings.seed)
    net = build(settings, num_classes)
    first, every, most = settings.dynamic_update
    dtu = {"score": settings.score, "first": first, "every": every, "most": most}
    teacher = DynamicTeacher(net, momentum=settings.momentum, train_mode=not settings.frozen_bn, **dtu)
    selector = RunningConfidenceSelector(num_classes, upper=settings.upper).to(run.device)
    bank = ReliabilityBank(len(data.target), num_classes, every_steps=settings.refresh, median="rounded")
    student, optimizer, teacher = run.prepare(net), run.optimizer(net), teacher.to(run.device)
    run.register(teacher=teacher, selector=selector, bank=bank)
    run.restore()
    run.expect(settings.steps)
    score = score_before(teacher.teacher.model, data, run)

    colours = (settings.jitter, settings.jitter_chance, settings.grey_chance, settings.blur_sigma, settings.blur_chance)
    strong_settings = StrongSettings(*colours, cut_out_chance=0.0)
    views = WeakStrongViews(settings.crop, scale=settings.view_scale, strong=strong_settings)
    is_rgb = data.target[0][0].shape[0] == 3
    pasting = {"companions": companions_of(data.label_map.classes), "min_pixels": settings.paste_pixels}
    pasting["min_class_pixels"] = 5 * settings.paste_pixels // 2

    for number, first_step in enumerate(range(0, settings.steps, settings.refresh)):
        stage = f"snapshot{number}"
        if run.passed(stage):
            continue
        snapshot = take_snapshot(net, data, run, bank, stage, number)
        tail = classes_below(snapshot.class_counts, share=settings.tail_share).to(run.device)
        loaders = balanced_loaders(data, run, bank, snapshot, number)
        student.train()
        teacher.teacher.train()
        total = min(settings.refresh, settings.steps - first_step)
        steps = run.steps(stage, total, *loaders, decay=(first_step, settings.decay_over * settings.steps))
        for _, (images, padding), (donor_images, donor_labels) in steps:
            images, donor_images, valid = as_floats(images), as_floats(donor_images), padding != IGNORE_INDEX
            with run.autocast():
                teacher_logits = teacher(images)
            pseudo = selector(teacher_logits, valid=valid)

            # The teacher predicts whole images. Carry its labels and probabilities into the student's view.
            parameters = views.draw(images[:, :1].expand(-1, 3, -1, -1))  # for any number of channels
            weak, labels = replay(images, parameters), replay(pseudo.labels, parameters)
            probs = teacher_logits.float().softmax(dim=1).masked_fill(~valid[:, None], 1.0)
            probs = replay(probs, parameters, fill=1.0)

            # Paste regions of rare classes, those with a low running confidence more often.
            drawn = views.draw(donor_images[:, :1].expand(-1, 3, -1, -1))
            donors = (replay(donor_images, drawn), replay(donor_labels, drawn))
            class_weight = torch.zeros_like(selector.running_confidence)
            class_weight[tail] = 1 - selector.running_confidence[tail]
            for _ in range(settings.pastes):
                mixed = paste_classes(weak, labels, class_weight, source=donors, **pasting)
                weak, labels = mixed.images, mixed.labels
                probs = probs.masked_fill(mixed.pasted[:, None], 1.0)  # no negative labels for pasted pixels

            if run.is_first_pass:
                teacher.observe(images, net)  # before the student learns from them
            with run.accumulate(student):
                strong = views.strong(weak, parameters) if is_rgb else relit(weak, settings.jitter[0])
                logits = student(cut_squares(strong, settings.cut_out_chance))
                # The loss is divided by all pixels, as published, so a batch with few labels has less weight.
                loss = cross_entropy(logits, labels, normalize="all")
                loss_negative = torch.zeros((), device=run.device)
                if settings.negative:
                    summed = negative_loss(logits, probs, loss_weight=settings.negative, reduction="sum")
                    loss_negative = run.mean(summed, (probs <= 1 / num_classes).sum())
                run.backward(loss + loss_negative)
                optimizer.step()
                optimizer.zero_grad()
            if run.is_last_pass:
                teacher.update(net)
            selected, updates = (pseudo.labels != IGNORE_INDEX).float().mean(), teacher.teacher.step
            run.log(loss=loss, negative_loss=loss_negative, selected=selected, teacher_updates=updates)
        score = evaluate(teacher.teacher.model, data, run, number + 1, stored=snapshot)
        run.say(f"round {number + 1}: teacher after {int(teacher.teacher.step)} updates: {line(score, data)}")

    run.finish(teacher.teacher.model, summary(score, data))


if __name__ == "__main__":
    main()
