"""DST-CBC: dynamic self-training with a class-balanced curriculum; ``--mutual``: DMT (Feng et al., arXiv:2004.08514).

Semi-supervised: few images are labelled (``--data voc --labelled 106``: one in 106). In each round the network labels
the most confident portion of every class in all other images; the portion grows until every pixel is labelled. The
weight of a pixel in the loss is p^gamma, where p is the probability that the network gives to the label. In DMT, two
students label images for each other, and the weight depends on whether they agree. ``--second-init`` starts the second
student from other weights: train the two on different parts of the labelled images, with ``--part 0 0.8`` and ``--part
0.2 1`` of ``source_only.py``. On the synthetic benchmark the source images are the labelled ones. Differs from the
published code: labelled and unlabelled images are separate forward passes with one common mean; the confidence of the
other student is stored in 8 bits; both students label before either learns. ``online.py`` is the baseline of both
papers.

``python examples/source_only.py && python examples/dst_cbc.py --init runs/source_only/model.pt``
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from _common.evaluation import evaluate, line, score_before, summary
from _common.files import save_weights
from _common.loading import as_floats
from _common.run import Run
from _common.settings import Settings, command_line, parse
from _data.augmentation import training_transform
from _data.checks import look_at_masks
from _data.opening import open_data
from _labelling.rounds import Labelled, label_target, open_store
from _networks.build import build

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.losses import dynamic_loss, dynamic_mutual_loss
from selftrain_seg.selectors import select_hard
from selftrain_seg.thresholds import DST_CBC_PORTIONS, ClassBalancedThreshold, PortionSchedule


@dataclass(kw_only=True)
class DSTCBCSettings(Settings):
    """Settings of DST-CBC and DMT."""

    mutual: bool = False  # DMT: two students label images for each other
    second_init: Path | None = None  # with --mutual, initial weights of the second student; default: those of --init
    gamma: float = 9.0  # the larger, the less unsure labels count
    gamma_agree: float = 5.0  # with --mutual, gamma of pixels on which the students agree
    gamma_disagree: float = 5.0  # with --mutual, gamma of pixels on which they disagree
    flip_labels: bool = False  # with --mutual, a student that is surer than the other keeps its own label
    labelled_batch: int | None = None  # labelled images in a batch; default: --batch, the number of unlabelled images
    rounds: int = 5  # rounds of labelling and training
    portion: tuple[float, float, float] = tuple(DST_CBC_PORTIONS)  # portion of pixels to label: start, step, stop
    stride: int = 4  # thresholds are estimated from every stride-th row and column; 4 uses one pixel in 16


@command_line
def main() -> None:
    settings = parse(DSTCBCSettings, __doc__)
    if not settings.mutual and (settings.second_init is not None or settings.flip_labels):
        raise SystemExit("--second-init and --flip-labels need two students: add --mutual")
    run = Run(settings)
    data = open_data(settings, run)
    num_classes = data.label_map.num_classes
    torch.manual_seed(settings.seed)
    nets = [build(settings, num_classes)]
    stores = [open_store(run, data, keep=("confidence",) if settings.mutual else ())]
    if settings.mutual:
        second = dataclasses.replace(settings, init=settings.second_init or settings.init)
        nets.append(build(second, num_classes))
        stores.append(open_store(run, data, "pseudo-labels-second", keep=("confidence",)))
    look_at_masks(data, run)
    students = [run.prepare(net) for net in nets]
    optimizers = [run.optimizer(net) for net in nets]
    run.restore()
    run.expect(len(nets) * settings.rounds * settings.steps)
    groups = ["", "second"][: len(nets)]
    scores = [score_before(net, data, run, group=group) for net, group in zip(nets, groups, strict=True)]
    evaluation = run.evaluation  # --eval-every evaluates the first student only
    transform = training_transform(settings.crop, scale=settings.scale_range, jitter=settings.colour_jitter)

    for number in range(settings.rounds):
        stages = [f"round{number + 1}", f"second-round{number + 1}"][: len(nets)]
        if run.passed(stages[-1]):
            continue
        portion = PortionSchedule(*settings.portion)(number)
        rounds = []
        for net, store in zip(nets, stores, strict=True):
            estimator = ClassBalancedThreshold(num_classes, portion, rank="first_out", stride=settings.stride)
            estimator = estimator.to(run.device)
            rounds.append(label_target(net, data, run, store, stages[0], number, estimator, select_hard, portion))
        # Two students learn from each other's labels, a single one from its own.
        teachers = reversed(rounds)
        for stage, student, optimizer, stored in zip(stages, students, optimizers, teachers, strict=True):
            if run.passed(stage):
                continue
            run.evaluation = evaluation if stage == stages[0] else None
            fields = ("labels", "confidence")
            target = Labelled(data.target, stored, fields) if settings.mutual else data.target_with(stored.labels)
            labelled = run.loader(data.source, f"{stage} labelled", transform, batch=settings.labelled_batch)
            unlabelled = run.loader(target, f"{stage} pseudo-labelled", transform)
            student.train()
            steps = run.steps(stage, settings.steps, labelled, unlabelled)
            for _, (true_images, true_labels), (images, pseudo_labels, *confidence) in steps:
                with run.accumulate(student):
                    # Separate forward passes: in a joint batch, BatchNorm would mix the statistics of the two domains.
                    logits = torch.cat([student(as_floats(true_images)), student(as_floats(images))])
                    labels = torch.cat([true_labels, pseudo_labels])
                    is_pseudo = torch.arange(len(labels), device=run.device) >= len(true_labels)
                    if settings.mutual:
                        certain = torch.ones_like(true_labels, dtype=torch.float32)
                        total = dynamic_mutual_loss(
                            logits,
                            labels,
                            torch.cat([certain, *confidence]),
                            gamma_agree=settings.gamma_agree,
                            gamma_disagree=settings.gamma_disagree,
                            is_pseudo=is_pseudo,
                            flip=settings.flip_labels,
                            reduction="sum",
                        )
                    else:
                        total = dynamic_loss(logits, labels, gamma=settings.gamma, is_pseudo=is_pseudo, reduction="sum")
                    loss = run.mean(total, (labels != IGNORE_INDEX).sum())
                    run.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
                run.log(**{"loss" if stage == stages[0] else "second_loss": loss})
        scores = [
            evaluate(net, data, run, number + 1, group=group, stored=stored)
            for net, group, stored in zip(nets, groups, rounds, strict=True)
        ]
        run.say(f"round {number + 1}: {'; second: '.join(line(score, data) for score in scores)}")

    results = summary(scores[0], data)
    if settings.mutual:
        results["second"] = summary(scores[1], data)
        if run.main:
            save_weights(nets[1], run.out / "second.pt")
    run.finish(nets[0], results)


if __name__ == "__main__":
    main()
