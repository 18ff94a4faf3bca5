"""CRST: confidence-regularised self-training in rounds (Zou et al., ICCV 2019, arXiv:1908.09822).

CBST (cbst.py) with regularisation, which keeps the network from becoming overconfident on pseudo-labels that may be
wrong. ``mrkld``, ``mrent`` and ``mrl2`` regularise the network: labels are hard, and the loss favours smooth
predictions. ``lrent`` regularises the labels: they are soft, and the store keeps the three largest entries of each
pixel. Source images are not regularised, as their labels are true; ``--source-alpha`` changes that. Differs from the
published code: each step has as many source as target images, in separate forward passes with a mean each. ``--alpha``
of ``mrkld`` is 0.01, as the published code multiplies by its weight of 0.1 twice. Of the other strengths, only that of
``lrent`` was published.

``python examples/source_only.py && python examples/crst.py --init runs/source_only/model.pt --regularizer lrent``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from _common.defaults import defaults
from _common.evaluation import evaluate, line, score_before, summary
from _common.loading import as_floats
from _common.run import Run
from _common.settings import Settings, command_line, parse
from _data.augmentation import training_transform
from _data.checks import look_at_masks
from _data.opening import open_data
from _labelling.drawing import source_order
from _labelling.rounds import Labelled, label_target, open_store, small_class_crop
from _networks.build import build
from torch import Tensor

from selftrain_seg import IGNORE_INDEX, PseudoLabels
from selftrain_seg.losses import cross_entropy, mrent_loss, mrkld_loss, mrl2_loss
from selftrain_seg.selectors import select_reweighted, select_soft
from selftrain_seg.store import expand_soft
from selftrain_seg.thresholds import ClassBalancedThreshold, PortionSchedule

LOSSES = {"mrkld": mrkld_loss, "mrent": mrent_loss, "mrl2": mrl2_loss}  # they include the cross entropy


@dataclass(kw_only=True)
class CRSTSettings(Settings):
    """Settings of CRST."""

    regularizer: Literal["mrkld", "mrent", "mrl2", "lrent"] = "mrkld"  # regularises the network or (lrent) the labels
    alpha: float | None = None  # its strength; default: 0.01 for mrkld, 0.1 for mrent and mrl2, 0.25 for lrent
    source_alpha: float = 0.0  # strength of mrkld, mrent or mrl2 on source images
    rounds: int = 6  # rounds of labelling and training
    portion: tuple[float, float, float] = (0.2, 0.05, 0.5)  # portion of pixels to label: start, step, stop
    source_portion: tuple[float, float, float] | None = None  # share of source images to train on: start, step, stop
    source_redraw: bool = False  # with --source-portion, draw the images anew in each round instead of adding some
    stride: int = 1  # thresholds are estimated from every stride-th row and column; 2 uses one pixel in 4
    mine: bool = False  # crop target images around small classes
    mine_rarest: bool = True  # with --mine, crop images without a small class around the rarest classes


@command_line
def main() -> None:
    settings = parse(CRSTSettings, __doc__)
    if settings.alpha is None:
        settings.alpha = defaults("crst", settings.data, settings.network)[f"alpha_{settings.regularizer}"]
    soft_labels = settings.regularizer == "lrent"
    if soft_labels and settings.alpha < 1e-6:
        raise SystemExit(f"--alpha {settings.alpha:g}: expected at least 1e-6 for --regularizer lrent")
    run = Run(settings)
    data = open_data(settings, run)
    num_classes = data.label_map.num_classes
    torch.manual_seed(settings.seed)
    net = build(settings, num_classes)
    look_at_masks(data, run)
    student, optimizer = run.prepare(net), run.optimizer(net)
    run.restore()
    run.expect(settings.rounds * settings.steps)
    store = open_store(run, data, keep=("soft",) if soft_labels else ())
    regularized_loss = LOSSES.get(settings.regularizer, mrkld_loss)
    score = score_before(net, data, run)
    augmentation = {"scale": settings.scale_range, "jitter": settings.colour_jitter}
    transform = training_transform(settings.crop, **augmentation)

    def select(logits: Tensor, thresholds: Tensor) -> PseudoLabels:
        if soft_labels:
            return select_soft(logits, thresholds, alpha=settings.alpha)
        return select_reweighted(logits, thresholds)

    for number in range(settings.rounds):
        stage = f"round{number + 1}"
        if run.passed(stage):
            continue
        portion = PortionSchedule(*settings.portion)(number)
        estimator = ClassBalancedThreshold(num_classes, portion, stride=settings.stride).to(run.device)
        stored = label_target(net, data, run, store, stage, number, estimator, select, portion)

        order = source_order(settings, len(data.source), number)
        crop = small_class_crop(stored, settings.crop, settings.mine_rarest) if settings.mine else None
        mining = training_transform(settings.crop, crop=crop, **augmentation)
        labelled = Labelled(data.target, stored, ("labels", "soft")) if soft_labels else data.target_with(stored.labels)
        source = run.loader(data.source, f"{stage} source", transform, order)
        target = run.loader(labelled, f"{stage} target", mining)

        student.train()
        steps = run.steps(stage, settings.steps, source, target)
        for _, (source_images, source_labels), (target_images, target_labels, *soft) in steps:
            with run.accumulate(student):
                # Separate forward passes: in a joint batch, BatchNorm would mix the statistics of the two domains.
                logits = student(as_floats(source_images))
                total = regularized_loss(logits, source_labels, reg_weight=settings.source_alpha, reduction="sum")
                source_loss = run.mean(total, (source_labels != IGNORE_INDEX).sum())
                logits = student(as_floats(target_images))
                if soft_labels:
                    total = cross_entropy(logits, expand_soft(soft[0], num_classes), reduction="sum")
                else:
                    total = regularized_loss(logits, target_labels, reg_weight=settings.alpha, reduction="sum")
                target_loss = run.mean(total, (target_labels != IGNORE_INDEX).sum())
                run.backward(source_loss + target_loss)
                optimizer.step()
                optimizer.zero_grad()
            run.log(source_loss=source_loss, target_loss=target_loss)
        score = evaluate(net, data, run, number + 1, stored=stored)
        run.say(f"round {number + 1}: {line(score, data)}")

    run.finish(net, summary(score, data))


if __name__ == "__main__":
    main()
