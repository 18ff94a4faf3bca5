"""DST-CBC: dynamic self-training with a class-balanced curriculum; ``--mutual``: DMT (Feng et al., arXiv:2004.08514).

Semi-supervised: few images are labelled (``--data voc --labelled 106``: one in 106), and in rounds the network labels
ever larger portions of every class in all others, at last everything. Its belief p in a label weighs the pixel's loss
by p^gamma. In DMT two students label for each other, and the weight depends on whether they agree; ``--second-init``
lets them differ from the start: train each on another part of the labelled images, ``source_only.py --part 0 0.8`` and
``--part 0.2 1``. On the embedded benchmark the source images are the labelled ones. Differs from the published code:
labelled and other images go through the network apart, but share one mean; the other's confidence is kept in 8 bits;
both students label before either learns. DMT's online variant is not offered.

``python examples/source_only.py && python examples/dst_cbc.py --init runs/source_only/model.pt``
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from _common.evaluation import evaluate, line, score_before, summary
from _common.files import save_atomically
from _common.loading import as_floats
from _common.rounds import Labelled, label_target, open_store
from _common.run import Run
from _common.settings import Settings, command_line, parse
from _data.augmentation import training_transform
from _data.checks import look_at_masks
from _data.opening import open_data
from _networks.build import build

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.losses import dynamic_loss, dynamic_mutual_loss
from selftrain_seg.selectors import select_hard
from selftrain_seg.thresholds import DST_CBC_PORTIONS, ClassBalancedThreshold, PortionSchedule


@dataclass(kw_only=True)
class DSTCBCSettings(Settings):
    """Settings of DST-CBC and DMT."""

    mutual: bool = False  # two students label for each other
    second_init: Path | None = None  # weights the second student starts from
    gamma: float = 9.0  # how strongly doubt weighs labels down
    gamma_agree: float = 5.0  # the same with --mutual, where the students agree
    gamma_disagree: float = 5.0  # and where they do not
    flip_labels: bool = False  # with --mutual, a student that is surer than the other keeps its own label
    labelled_batch: int | None = None  # labelled images in a step; by default --batch, which counts the others
    rounds: int = 5  # of labelling and training
    portion: tuple[float, float, float] = tuple(DST_CBC_PORTIONS)  # of pixels that are labelled: start, step, stop
    stride: int = 4  # thresholds count every so many-th row and column: 4 counts one pixel in 16


@command_line
def main() -> None:
    settings = parse(DSTCBCSettings, __doc__)
    if not settings.mutual and (settings.second_init is not None or settings.flip_labels):
        raise SystemExit("--second-init and --flip-labels are for two students: add --mutual")
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
    evaluation = run.evaluation  # by --eval-every, of the first student alone
    transform = training_transform(settings.crop, scale=settings.scale_range, jitter=settings.colour_jitter)

    for number in range(settings.rounds):
        stages = [f"round{number + 1}", f"second-round{number + 1}"][: len(nets)]
        if run.passed(stages[-1]):
            continue
        portion = PortionSchedule(*settings.portion)(number)
        rounds = []
        for net, store in zip(nets, stores, strict=True):
            kc = ClassBalancedThreshold(num_classes, portion, rank="first_out", stride=settings.stride).to(run.device)
            rounds.append(label_target(net, data, run, store, stages[0], number, kc, select_hard, portion))
        # Each learns what the other has labelled; one alone what it has labelled itself.
        teachers = reversed(rounds)
        for stage, student, optimizer, stored in zip(stages, students, optimizers, teachers, strict=True):
            if run.passed(stage):
                continue
            run.evaluation = evaluation if stage == stages[0] else None
            fields = ("labels", "confidence")
            others = Labelled(data.target, stored, fields) if settings.mutual else data.target_with(stored.labels)
            labelled = run.loader(data.source, f"{stage} labelled", transform, batch=settings.labelled_batch)
            pseudo = run.loader(others, f"{stage} pseudo-labelled", transform)
            student.train()
            for _, (true_images, true_labels), (images, labels, *confidence) in run.steps(
                stage, settings.steps, labelled, pseudo
            ):
                with run.accumulate(student):
                    # Apart: where the domains differ, BatchNorm would mix their statistics in one batch.
                    logits = torch.cat([student(as_floats(true_images)), student(as_floats(images))])
                    labels = torch.cat([true_labels, labels])
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
            save_atomically(nets[1].cpu().state_dict(), run.out / "second.pt")
    run.finish(nets[0], results)


if __name__ == "__main__":
    main()
