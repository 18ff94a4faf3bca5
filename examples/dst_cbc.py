"""DST-CBC: dynamic self-training with a class-balanced curriculum; ``--mutual``: DMT (Feng et al., arXiv:2004.08514).

Semi-supervised: few images are labelled (``--data voc --labelled 106``: one in 106), and in rounds the network labels
ever larger portions of every class in all others, at last everything. Its belief p in a label weighs the pixel's loss
by p^gamma. In DMT two students label for each other, and the weight depends on whether they agree; ``--second-init``
lets them differ from the start. On the embedded benchmark the source images are the labelled ones. Differs from the
paper: as many labelled as other images in a step, which go through the network apart but share one mean; networks go on
from round to round; steps, batch and learning rate are not the paper's; the other's confidence is kept in 8 bits.
Published gammas are smaller with more labels: 9 of DST-CBC is for 1/106 of VOC, 5 of DMT for 1/20.

``python examples/source_only.py && python examples/dst_cbc.py --init runs/source_only/model.pt``
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import torch
from _common import arguments
from _common.data import save_atomically
from _common.evaluation import evaluate, line, prepare, report, score_before
from _common.folders import Data, look_at_masks, open_data, training_transform
from _common.loading import Batches, as_floats
from _common.networks import build, optimizer_of
from _common.rounds import Labelled, finished, gather, note_round, open_store, thresholds_of, write_labels
from _common.run import Run
from torch import Tensor, nn

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.losses import dynamic_loss, dynamic_mutual_loss
from selftrain_seg.selectors import select_hard
from selftrain_seg.store import PseudoLabelStore, StoredRound
from selftrain_seg.thresholds import DST_CBC_PORTIONS, ClassBalancedThreshold, PortionSchedule


def label_others(net: nn.Module, data: Data, run: Run, store: PseudoLabelStore, round: int) -> StoredRound:
    """Thresholds from one pass over the images without labels, labels from another; or an earlier attempt's."""
    stored = finished(store, round)
    if stored is not None:
        return stored
    portion, stride = PortionSchedule(*run.args.portion)(round), run.args.stride
    kc = ClassBalancedThreshold(data.label_map.num_classes, portion, rank="first_out", stride=stride).to(run.device)

    def estimate() -> Tensor:
        gather(net, data, run, kc.update)
        return kc.compute()

    thresholds = thresholds_of(store, round, run, estimate)
    return write_labels(
        net,
        data,
        run,
        store,
        round,
        lambda logits: select_hard(logits, thresholds),
        thresholds=thresholds,
        portion=portion,
    )


def main() -> None:
    parser = arguments.parser(
        __doc__,
        small={
            "steps": 72,
            "lr": 2e-3,
            "reestimate_bn": 1,
            "stride": 1,
            "gamma": 1.0,
            "gamma_agree": 1.0,
            "gamma_disagree": 1.0,
        },
        papers={
            "steps": 5000,
            "batch": 4,
            "lr": 2.5e-4,
            "optimizer": "sgd",
            "largest_crop": [321, 321],
            "frozen_bn": True,
        },
    )
    parser.add_argument("--mutual", action="store_true", help="two students label for each other")
    parser.add_argument("--second-init", type=Path, help="weights the second student starts from")
    parser.add_argument("--gamma", type=float, default=9.0, help="how strongly doubt weighs labels down")
    parser.add_argument("--gamma-agree", type=float, default=5.0, help="the same with --mutual, where students agree")
    parser.add_argument("--gamma-disagree", type=float, default=5.0, help="and where they do not")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--portion", type=float, nargs=3, default=DST_CBC_PORTIONS, help="start, step, stop")
    parser.add_argument("--stride", type=int, default=4, help="thresholds from so many-th rows, columns: 1 pixel in 16")
    args = parser.parse_args()
    run = Run(args)
    data = open_data(args, run)
    num_classes = data.label_map.num_classes
    torch.manual_seed(args.seed)
    nets = [build(args, num_classes).to(run.device)]
    stores = [open_store(run, data, keep=("confidence",) if args.mutual else ())]
    if args.mutual:
        second = Namespace(**{**vars(args), "init": args.second_init or args.init})
        nets.append(build(second, num_classes).to(run.device))
        stores.append(open_store(run, data, "pseudo-labels-second", keep=("confidence",)))
    look_at_masks(data, run)
    students = [run.wrap(net) for net in nets]
    names = ["", "second"][: len(nets)]
    scores = [score_before(net, data, run, group=name) for net, name in zip(nets, names, strict=True)]

    for round in range(args.rounds):
        stages = [f"round{round + 1}", f"second-round{round + 1}"][: len(nets)]
        if run.begun(stages[0]):
            made = [store.round(round) for store in stores]
        else:
            pairs = zip(nets, stores, strict=True)
            made = [label_others(prepare(net, data, run), data, run, store, round) for net, store in pairs]
        # Each learns what the other has labelled; one alone what it has labelled itself.
        for stage, net, student, stored in zip(stages, nets, students, reversed(made), strict=True):
            fields = ("labels", "confidence")
            others = Labelled(data.target, stored, fields) if args.mutual else data.target_with(stored.labels)
            labelled = Batches(data.source, run, f"{stage} labelled", training_transform(args.crop))
            pseudo = Batches(others, run, f"{stage} pseudo-labelled", training_transform(args.crop))
            optimizer, schedule = optimizer_of(args, net, args.steps)
            student.train()
            for step in run.steps(stage, args.steps, net=net, optimizer=optimizer, schedule=schedule):
                for part in range(args.accumulate):
                    true_images, true_labels = labelled[step * args.accumulate + part]
                    images, labels, *confidence = pseudo[step * args.accumulate + part]
                    with run.forward(student):
                        # Apart: where the domains differ, BatchNorm would mix their statistics in one batch.
                        logits = torch.cat([student(as_floats(true_images)), student(as_floats(images))])
                        labels = torch.cat([true_labels, labels])
                        is_pseudo = torch.arange(len(labels), device=run.device) >= len(true_labels)
                        if args.mutual:
                            certain = torch.ones_like(true_labels, dtype=torch.float32)
                            total = dynamic_mutual_loss(
                                logits,
                                labels,
                                torch.cat([certain, *confidence]),
                                gamma_agree=args.gamma_agree,
                                gamma_disagree=args.gamma_disagree,
                                is_pseudo=is_pseudo,
                                reduction="sum",
                            )
                        else:
                            total = dynamic_loss(logits, labels, gamma=args.gamma, is_pseudo=is_pseudo, reduction="sum")
                        loss = run.mean(total, (labels != IGNORE_INDEX).sum())
                    run.learn(loss, optimizer, schedule)
                name = "loss" if net is nets[0] else "second_loss"
                run.scalars(round * args.steps + step, **{name: loss})
        scores = [
            evaluate(prepare(net, data, run), data, run, round + 1, group=name)
            for net, name in zip(nets, names, strict=True)
        ]
        run.say(f"round {round + 1}: {'; second: '.join(line(score, data) for score in scores)}")
        for score, stored, name in zip(scores, made, names, strict=True):
            note_round(run, data, round + 1, score=score, stored=stored, group=name)

    results = report(scores[0], data)
    if args.mutual:
        results["second"] = report(scores[1], data)
        if run.main:
            save_atomically(nets[1].cpu().state_dict(), run.out / "second.pt")
    run.finish(nets[0], results)


if __name__ == "__main__":
    main()
