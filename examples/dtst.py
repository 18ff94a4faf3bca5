"""DT-ST: a source-trained network adapts to target images alone (Zhao et al., CVPR 2023).

The teacher (DTU) follows the student only when it has improved on recent batches. It labels whole images; thresholds
follow a running confidence of each class, what it is sure a pixel is not is learnt, too, and its output is carried
into the student's scaled, cropped, mirrored and recoloured view. Every ``--refresh`` steps all images are labelled
(TCR): classes whose labels are steady from one of these snapshots to the next decide which images are drawn, and which
regions are pasted into others. The teacher is what is evaluated and saved.

Differs from the published code: the student takes the snapshots; before the first comparison a class is steady in an
image where its mean confidence is at least the median; pasted are the classes below ``--tail-share`` of a snapshot,
from images drawn apart. Without ``--frozen-bn`` the teacher's BatchNorm works with the statistics of the batch.

``python examples/source_only.py && python examples/dtst.py --init runs/source_only/model.pt``
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from _common.evaluation import evaluate, line, ready_to_predict, score_before, summary
from _common.loading import as_floats
from _common.progress import progress
from _common.rounds import open_store, write_labels
from _common.run import Run
from _common.settings import Settings, command_line, parse
from _data.augmentation import cut_squares, relit, whole_image
from _data.opening import Data, open_data
from _networks.build import build
from torch import Tensor, nn

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.losses import cross_entropy, negative_loss
from selftrain_seg.mining import ClassBalancedSampler, ClassIndex, ReliabilityBank, classes_below, paste_classes
from selftrain_seg.selectors import RunningConfidenceSelector, select_hard
from selftrain_seg.store import StoredRound
from selftrain_seg.teachers import DynamicTeacher
from selftrain_seg.views import StrongSettings, WeakStrongViews, replay

BRINGS = {
    **dict.fromkeys(("bicycle", "motorcycle"), "rider"),
    **dict.fromkeys(("light", "sign", "traffic light", "traffic sign"), "pole"),
}


@dataclass(kw_only=True)
class DTSTSettings(Settings):
    """Settings of DT-ST."""

    train_resize: tuple[int, int] | None = None  # size of images in training only; by default as they are
    refresh: int = 3000  # steps between snapshots (TCR)
    view_scale: tuple[float, float] = (0.75, 1.75)  # of the student's views
    jitter: tuple[float, float, float, float] = (0.5, 0.5, 0.5, 0.2)  # of the student's colours
    jitter_chance: float = 0.8  # share of views whose colours change
    grey_chance: float = 0.2  # share of views without colours
    blur_sigma: tuple[float, float] = (0.1, 1.0)  # of blurred views, in pixels
    blur_chance: float = 0.5  # share of views that are blurred
    cut_out_chance: float = 0.0  # share of views in which a quarter of the squares of 32 pixels is black
    momentum: float = 0.99  # of the teacher
    score: Literal["snd", "entropy"] = "snd"  # that the teacher goes by (DTU)
    dynamic_update: tuple[int, int, int] = (9, 3, 30)  # batches stored at the first decision, between two, at most
    upper: float = 0.8  # share of its class's peak that a pixel must reach
    negative: float = 0.5  # weight of negative learning; 0 for none
    tail_share: float = 0.03  # of labelled pixels: classes below it are pasted
    pastes: int = 1  # classes pasted into each image
    paste_pixels: int = 20  # that a pasted region must have


def take_snapshot(net: nn.Module, data: Data, run: Run, bank: ReliabilityBank, step: int) -> StoredRound:
    """Label all pixels of the target images, and find the classes of each whose labels have hardly changed."""
    number = int(bank.snapshots)
    store = open_store(run, data, keep=() if number else ("confidence",))
    everything = functools.partial(select_hard, thresholds=0.0)
    now = write_labels(ready_to_predict(net, data, run), data, run, store, number, everything)
    before = store.round(number - 1) if number else None
    mine = range(run.rank, len(now), run.world)
    for place in progress(mine, f"comparing snapshot {number}", disable=not run.main):
        labels, confidence = now.read(place)[:2]
        previous = None if before is None else before.labels(place)[None]
        bank.update(torch.tensor([place]), labels[None], confidence[None], previous=previous)
    bank.refresh(step)
    if not bank.candidates.any():
        raise SystemExit(
            f"snapshot {number}: no class of any image is steady, so there is nothing to draw images by. Are its "
            "labels empty, or all others than before? Start from a network that knows these classes (--init), or take "
            "snapshots more often (--refresh)"
        )
    return now


def steady_labels(snapshot: StoredRound, bank: ReliabilityBank, name: str) -> Tensor:
    """Labels of one image's steady classes."""
    return bank.filter(snapshot.labels(name)[None], torch.tensor([snapshot.names.index(name)]))[0]


def balanced_loaders(data: Data, run: Run, bank: ReliabilityBank, snapshot: StoredRound) -> list[Any]:
    """Loaders to learn from and to paste from, both by the classes that a snapshot found steady."""
    settings, number = run.settings, int(bank.snapshots) - 1
    donors = data.target_with(functools.partial(steady_labels, snapshot, bank))
    transform = whole_image(settings.tile or data.target[0][0].shape[-2:], settings.train_resize)
    draw = functools.partial(
        ClassBalancedSampler,
        ClassIndex(snapshot.counts, snapshot.pixels),
        candidates=bank.candidates,
        num_samples=settings.refresh * settings.accumulate * settings.batch,
        rank=0,  # the order of all processes; the loader shares it among them
        num_replicas=1,
    )
    return [
        run.loader(dataset, f"{name} {number}", transform, list(draw(seed=run.seed(name, number))))
        for name, dataset in (("target", data.target), ("donors", donors))
    ]


@command_line
def main() -> None:
    settings = parse(DTSTSettings, __doc__)
    if settings.init is None or settings.data == "voc":
        raise SystemExit("DT-ST adapts a network trained on another domain: say which one with --init")
    run = Run(settings)
    data = open_data(settings, run, source_free=True)
    place = {name: number for number, name in enumerate(data.label_map.classes)}
    brings = {place[one]: [place[other]] for one, other in BRINGS.items() if one in place and other in place}
    num_classes = len(place)
    torch.manual_seed(settings.seed)
    net = build(settings, num_classes)
    train_mode = not settings.frozen_bn
    start, every, most = settings.dynamic_update
    how = {"momentum": settings.momentum, "score": settings.score, "train_mode": train_mode}
    teacher = DynamicTeacher(net, first=start, every=every, most=most, **how)
    selector = RunningConfidenceSelector(num_classes, upper=settings.upper).to(run.device)
    bank = ReliabilityBank(len(data.target), num_classes, every_steps=settings.refresh, median="rounded")
    student, optimizer, teacher = run.prepare(net), run.optimizer(net), teacher.to(run.device)
    run.register(teacher=teacher, selector=selector, bank=bank)
    run.restore()
    run.expect(settings.steps)
    score = score_before(teacher.teacher.model, data, run)
    colours = (settings.jitter, settings.jitter_chance, settings.grey_chance)
    noise = StrongSettings(*colours, settings.blur_sigma, settings.blur_chance, cut_out_chance=0.0)
    views = WeakStrongViews(settings.crop, scale=settings.view_scale, strong=noise)
    coloured = data.target[0][0].shape[0] == 3  # of other channels, none is a colour
    regions = {"min_pixels": settings.paste_pixels, "min_class_pixels": 5 * settings.paste_pixels // 2}

    for number, first in enumerate(range(0, settings.steps, settings.refresh)):
        stage = f"snapshot{number}"
        if run.passed(stage):
            continue
        if run.has_begun(stage):
            snapshot = open_store(run, data).round(number)
        else:
            snapshot = take_snapshot(net, data, run, bank, first)
        small = classes_below(snapshot.class_counts, share=settings.tail_share).to(run.device)
        loaders = balanced_loaders(data, run, bank, snapshot)
        student.train()
        teacher.teacher.train()
        steps, decay = min(settings.refresh, settings.steps - first), (first, settings.decay_over * settings.steps)
        for _, (images, _), (donor_images, donor_labels) in run.steps(stage, steps, *loaders, decay=decay):
            images, donor_images = as_floats(images), as_floats(donor_images)
            with run.autocast():
                teacher_logits = teacher(images)
            pseudo = selector(teacher_logits)

            # What belongs to the whole image, carried into the student's view of it.
            parameters = views.draw(images[:, :1].expand(-1, 3, -1, -1))  # whatever the channels are
            weak, labels = replay(images, parameters), replay(pseudo.labels, parameters)
            probs = replay(teacher_logits.float().softmax(dim=1), parameters, fill=1.0)

            # Regions of small classes, the more often the less the teacher sees of them.
            drawn = views.draw(donor_images[:, :1].expand(-1, 3, -1, -1))
            donors = (replay(donor_images, drawn), replay(donor_labels, drawn))
            wanted = torch.zeros_like(selector.running_confidence)
            wanted[small] = 1 - selector.running_confidence[small]
            for _ in range(settings.pastes):
                mixed = paste_classes(weak, labels, wanted, source=donors, companions=brings, **regions)
                weak, labels = mixed.images, mixed.labels
                probs = probs.masked_fill(mixed.pasted[:, None], 1.0)  # there the teacher saw something else

            if run.is_first_pass:
                teacher.observe(images, net)  # before the student learns from it
            with run.accumulate(student):
                strong = views.strong(weak, parameters) if coloured else relit(weak, settings.jitter[0])
                logits = student(cut_squares(strong, settings.cut_out_chance))
                # Divided by all pixels, as published: the fewer have labels, the less these count.
                positive = cross_entropy(logits, labels, normalize="all")
                negative = torch.zeros((), device=run.device)
                if settings.negative:
                    total = negative_loss(logits, probs, loss_weight=settings.negative, reduction="sum")
                    negative = run.mean(total, (probs <= 1 / num_classes).sum())
                run.backward(positive + negative)
                optimizer.step()
                optimizer.zero_grad()
            if run.is_last_pass:
                teacher.update(net)
            selected, updates = (pseudo.labels != IGNORE_INDEX).float().mean(), teacher.teacher.step
            run.log(loss=positive, negative_loss=negative, selected=selected, teacher_updates=updates)
        score = evaluate(teacher.teacher.model, data, run, number + 1, stored=snapshot)
        run.say(f"round {number + 1}: the teacher, after {int(teacher.teacher.step)} updates: {line(score, data)}")

    run.finish(teacher.teacher.model, summary(score, data))


if __name__ == "__main__":
    main()
