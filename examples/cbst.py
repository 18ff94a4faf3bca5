"""CBST: class-balanced self-training in rounds (Zou et al., ECCV 2018, arXiv:1810.07911).

Each round labels the most confident portion of every class in the target images, trains on these labels and on source
images, and the portion grows. ``--spatial-prior`` multiplies probabilities by where source classes lie (CBST-SP);
``--policy global`` has one threshold for all classes, as self-training had before. Differs from the published code:
every step has as many source as target images, which go through the network apart; thresholds come from all pixels.

``python examples/source_only.py && python examples/cbst.py --init runs/source_only/model.pt``
"""

from __future__ import annotations

from argparse import BooleanOptionalAction

import torch
from _common import arguments
from _common.evaluation import evaluate, line, prepare, report, score_before
from _common.folders import Data, look_at_masks, open_data, training_transform
from _common.loading import Batches, as_floats
from _common.networks import build, optimizer_of
from _common.rounds import finished, gather, note_round, open_store, small_class_crop, thresholds_of, write_labels
from _common.run import Run
from torch import Tensor, nn
from tqdm import tqdm

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.confidence import SpatialPrior
from selftrain_seg.losses import cross_entropy
from selftrain_seg.selectors import select_hard, select_reweighted
from selftrain_seg.store import PseudoLabelStore, StoredRound
from selftrain_seg.thresholds import ClassBalancedThreshold, GlobalThreshold, PortionSchedule, source_subset


def label_target(
    net: nn.Module, data: Data, run: Run, store: PseudoLabelStore, round: int, prior: Tensor | None
) -> StoredRound:
    """Thresholds from one pass over the target images, labels from another; or what an earlier attempt finished."""
    stored = finished(store, round)
    if stored is not None:
        return stored
    args = run.args
    portion = PortionSchedule(*args.portion)(round)
    estimator = GlobalThreshold if args.policy == "global" else ClassBalancedThreshold
    kc = estimator(data.label_map.num_classes, portion, prior=prior).to(run.device)

    def estimate() -> Tensor:
        gather(net, data, run, kc.update)
        return kc.compute()

    thresholds = thresholds_of(store, round, run, estimate)
    select = select_hard if args.policy == "global" else select_reweighted
    return write_labels(
        net,
        data,
        run,
        store,
        round,
        lambda logits: select(logits, thresholds, prior=prior),
        thresholds=thresholds,
        portion=portion,
    )


def spatial_prior(data: Data, run: Run) -> Tensor:
    """How often source pixels at each place are of each class, smoothed; of the target images' size."""
    height, width = data.target[0][0].shape[-2:]
    prior = SpatialPrior(data.label_map.num_classes, (height, width), sigma_px=run.args.prior_sigma).to(run.device)
    masks = data.source.masks()
    for index in tqdm(range(run.rank, len(masks), run.world), "spatial prior", leave=False, disable=None):
        try:
            prior.update(masks[index][None].to(run.device))
        except ValueError as error:
            needs = "--spatial-prior needs images of one scene and one size, which --resize gives"
            raise SystemExit(f"{needs}: {data.source.names[index]}: {error}") from None
    return prior.compute()


def main() -> None:
    parser = arguments.parser(
        __doc__,
        small={
            "steps": 120,
            "rounds": 3,
            "lr": 2e-3,
            "reestimate_bn": 1,
            "portion": [0.3, 0.1, 0.5],
            "prior_sigma": 4.0,
        },
        papers={
            "steps": 5000,
            "batch": 2,
            "lr": 5e-5,
            "optimizer": "sgd",
            "largest_crop": [500, 500],
            "frozen_bn": True,
            "mine": True,
            "lr_decay": 0.5**0.5,
            "source_portion": [0.03, 0.0025, 0.06],
        },
    )
    parser.add_argument("--policy", choices=("class-balanced", "global"), default="class-balanced")
    parser.add_argument("--spatial-prior", action="store_true")
    parser.add_argument("--prior-sigma", type=float, default=70.0, help="of the prior's Gaussian, in pixels")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--portion", type=float, nargs=3, default=(0.2, 0.05, 0.5), help="start, step, stop")
    parser.add_argument("--source-portion", type=float, nargs=3, help="start, step, stop of source images in use")
    parser.add_argument("--lr-decay", type=float, default=1.0, help="factor of the learning rate from round to round")
    parser.add_argument("--mine", action=BooleanOptionalAction, default=False, help="crop around small classes")
    args = parser.parse_args()
    run = Run(args)
    data = open_data(args, run)
    torch.manual_seed(args.seed)
    net = build(args, data.label_map.num_classes).to(run.device)
    look_at_masks(data, run)
    student = run.wrap(net)
    store = open_store(run, data)
    prior = spatial_prior(data, run) if args.spatial_prior else None
    score = score_before(net, data, run)

    for round in range(args.rounds):
        stage = f"round{round + 1}"
        if run.begun(stage):
            stored = store.round(round)
        else:
            stored = label_target(prepare(net, data, run), data, run, store, round, prior)
        crop = small_class_crop(stored, args.crop) if args.mine else None
        order = None
        if args.source_portion is not None:
            share = PortionSchedule(*args.source_portion)(round)
            order = source_subset(len(data.source), share, seed=args.seed).tolist()
        target = Batches(
            data.target_with(stored.labels), run, f"{stage} target", training_transform(args.crop, crop=crop)
        )
        source = Batches(data.source, run, f"{stage} source", training_transform(args.crop), order)

        optimizer, schedule = optimizer_of(args, net, args.steps, lr=args.lr * args.lr_decay**round)
        student.train()
        for step in run.steps(stage, args.steps, net=net, optimizer=optimizer, schedule=schedule):
            for part in range(args.accumulate):
                losses = []
                for batches in (source, target):
                    images, labels = batches[step * args.accumulate + part]
                    with run.forward(student):
                        total = cross_entropy(student(as_floats(images)), labels, reduction="sum")
                    losses.append(run.mean(total, (labels != IGNORE_INDEX).sum()))
                run.learn(losses[0] + losses[1], optimizer, schedule)
            run.scalars(round * args.steps + step, source_loss=losses[0], target_loss=losses[1])
        score = evaluate(prepare(net, data, run), data, run, round + 1)
        run.say(f"round {round + 1}: {line(score, data)}")
        note_round(run, data, round + 1, score=score, stored=stored)
        net.train()

    run.finish(net, report(score, data))


if __name__ == "__main__":
    main()
