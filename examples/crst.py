"""CRST: confidence-regularised self-training in rounds (Zou et al., ICCV 2019, arXiv:1908.09822).

CBST (see cbst.py), kept from growing overconfident on labels that may be wrong. ``mrkld``, ``mrent`` and ``mrl2``
regularise the network: hard labels and a loss that is smaller for smoother predictions. ``lrent`` regularises the
labels: soft ones, of which the store keeps the three largest entries of a pixel. Source labels are true, so source
images are not regularised unless ``--source-alpha`` asks for it. Differs from the published code: every step has as
many source as target images, which go through the network apart, each with a mean of its own; thresholds come from all
pixels, labels from one scale. Of the strengths, CRST's own are those of ``mrkld`` and ``lrent``.

``python examples/source_only.py && python examples/crst.py --init runs/source_only/model.pt --regularizer lrent``
"""

from __future__ import annotations

from argparse import BooleanOptionalAction

import torch
from _common import arguments
from _common.evaluation import evaluate, line, prepare, report, score_before
from _common.folders import Data, look_at_masks, open_data, training_transform
from _common.loading import Batches, as_floats
from _common.networks import build, optimizer_of
from _common.rounds import (
    Labelled,
    finished,
    gather,
    note_round,
    open_store,
    small_class_crop,
    thresholds_of,
    write_labels,
)
from _common.run import Run
from torch import Tensor, nn

from selftrain_seg import IGNORE_INDEX, PseudoLabels
from selftrain_seg.losses import cross_entropy, mrent_loss, mrkld_loss, mrl2_loss
from selftrain_seg.selectors import select_reweighted, select_soft
from selftrain_seg.store import PseudoLabelStore, StoredRound, expand_soft
from selftrain_seg.thresholds import ClassBalancedThreshold, PortionSchedule, source_subset

LOSSES = {"mrkld": mrkld_loss, "mrent": mrent_loss, "mrl2": mrl2_loss}  # cross entropy included
ALPHAS = {"mrkld": 0.1, "mrent": 0.1, "mrl2": 0.1, "lrent": 0.25}


def label_target(net: nn.Module, data: Data, run: Run, store: PseudoLabelStore, round: int) -> StoredRound:
    """Thresholds from one pass over the target images; labels, hard or soft, from another; or an earlier attempt's."""
    stored = finished(store, round)
    if stored is not None:
        return stored
    args = run.args
    portion = PortionSchedule(*args.portion)(round)
    kc = ClassBalancedThreshold(data.label_map.num_classes, portion).to(run.device)

    def estimate() -> Tensor:
        gather(net, data, run, kc.update)
        return kc.compute()

    thresholds = thresholds_of(store, round, run, estimate)

    def select(logits: Tensor) -> PseudoLabels:
        if args.regularizer == "lrent":
            return select_soft(logits, thresholds, alpha=args.alpha)
        return select_reweighted(logits, thresholds)

    return write_labels(net, data, run, store, round, select, thresholds=thresholds, portion=portion)


def main() -> None:
    parser = arguments.parser(
        __doc__,
        small={"steps": 120, "rounds": 3, "lr": 2e-3, "reestimate_bn": 1, "portion": [0.3, 0.1, 0.5]},
        papers={
            "steps": 5000,
            "batch": 2,
            "lr": 5e-5,
            "optimizer": "sgd",
            "largest_crop": [500, 500],
            "frozen_bn": True,
            "mine": True,
            "source_portion": [0.03, 0.0025, 0.06],
        },
    )
    parser.add_argument("--regularizer", choices=list(ALPHAS), default="mrkld")
    parser.add_argument("--alpha", type=float, help=f"strength of the regulariser (default: {ALPHAS})")
    parser.add_argument("--source-alpha", type=float, default=0.0, help="of the network's regulariser on source images")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--portion", type=float, nargs=3, default=(0.2, 0.05, 0.5), help="start, step, stop")
    parser.add_argument("--source-portion", type=float, nargs=3, help="start, step, stop of source images in use")
    parser.add_argument("--mine", action=BooleanOptionalAction, default=False, help="crop around small classes")
    args = parser.parse_args()
    args.alpha = ALPHAS[args.regularizer] if args.alpha is None else args.alpha
    soft_labels = args.regularizer == "lrent"
    run = Run(args)
    data = open_data(args, run)
    num_classes = data.label_map.num_classes
    torch.manual_seed(args.seed)
    net = build(args, num_classes).to(run.device)
    look_at_masks(data, run)
    student = run.wrap(net)
    store = open_store(run, data, keep=("soft",) if soft_labels else ())
    regularized_loss = LOSSES.get(args.regularizer, mrkld_loss)
    score = score_before(net, data, run)

    for round in range(args.rounds):
        stage = f"round{round + 1}"
        if run.begun(stage):
            stored = store.round(round)
        else:
            stored = label_target(prepare(net, data, run), data, run, store, round)
        crop = small_class_crop(stored, args.crop) if args.mine else None
        order = None
        if args.source_portion is not None:
            share = PortionSchedule(*args.source_portion)(round)
            order = source_subset(len(data.source), share, seed=args.seed).tolist()
        labelled = Labelled(data.target, stored, ("labels", "soft")) if soft_labels else data.target_with(stored.labels)
        target = Batches(labelled, run, f"{stage} target", training_transform(args.crop, crop=crop))
        source = Batches(data.source, run, f"{stage} source", training_transform(args.crop), order)

        optimizer, schedule = optimizer_of(args, net, args.steps)
        student.train()
        for step in run.steps(stage, args.steps, net=net, optimizer=optimizer, schedule=schedule):
            for part in range(args.accumulate):
                source_images, source_labels = source[step * args.accumulate + part]
                target_images, target_labels, *soft = target[step * args.accumulate + part]
                with run.forward(student):
                    # The domains go through the network apart: in one batch BatchNorm would mix their statistics.
                    logits = student(as_floats(source_images))
                    total = regularized_loss(logits, source_labels, reg_weight=args.source_alpha, reduction="sum")
                    source_loss = run.mean(total, (source_labels != IGNORE_INDEX).sum())
                    logits = student(as_floats(target_images))
                    if soft_labels:
                        total = cross_entropy(logits, expand_soft(soft[0], num_classes), reduction="sum")
                    else:
                        total = regularized_loss(logits, target_labels, reg_weight=args.alpha, reduction="sum")
                    target_loss = run.mean(total, (target_labels != IGNORE_INDEX).sum())
                run.learn(source_loss + target_loss, optimizer, schedule)
            run.scalars(round * args.steps + step, source_loss=source_loss, target_loss=target_loss)
        score = evaluate(prepare(net, data, run), data, run, round + 1)
        run.say(f"round {round + 1}: {line(score, data)}")
        note_round(run, data, round + 1, score=score, stored=stored)
        net.train()

    run.finish(net, report(score, data))


if __name__ == "__main__":
    main()
