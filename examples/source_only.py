"""Train on labelled images only: what adaptation starts from, and what it must beat.

``python examples/source_only.py`` trains on the source domain. From there, ``--init MODEL --steps 0 --reestimate-bn 1``
gives what BatchNorm's statistics alone do, ``--init MODEL`` more source steps, and ``--domain target``, which sees the
target's labels, the upper bound. Under ``torchrun``, as all trainers here, it uses all processes.
"""

from __future__ import annotations

import torch
from _common import arguments
from _common.evaluation import evaluate, line, prepare, report, score_before
from _common.folders import look_at_masks, open_data, training_transform
from _common.loading import Batches, as_floats
from _common.networks import build, optimizer_of
from _common.rounds import note_round
from _common.run import Run

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.losses import cross_entropy


def main() -> None:
    parser = arguments.parser(
        __doc__,
        small={"steps": 1000, "batch": 8, "lr": 4e-3},
        papers={
            "steps": 80000,
            "batch": 4,
            "lr": 2.5e-4,
            "optimizer": "sgd",
            "largest_crop": [512, 1024],
            "frozen_bn": True,
        },
    )
    parser.add_argument("--domain", choices=("source", "target"), default="source", help="target: the upper bound")
    args = parser.parse_args()
    run = Run(args)
    data = open_data(args, run)
    torch.manual_seed(args.seed)
    net = build(args, data.label_map.num_classes).to(run.device)
    look_at_masks(data, run)
    student = run.wrap(net)
    score_before(net, data, run)

    optimizer, schedule = optimizer_of(args, net, args.steps)
    labelled = data.source if args.domain == "source" else data.target_with(True)
    batches = Batches(labelled, run, args.domain, training_transform(args.crop))
    student.train()
    for step in run.steps("labelled", args.steps, net=net, optimizer=optimizer, schedule=schedule):
        for part in range(args.accumulate):
            images, labels = batches[step * args.accumulate + part]
            with run.forward(student):
                total = cross_entropy(student(as_floats(images)), labels, reduction="sum")
            loss = run.mean(total, (labels != IGNORE_INDEX).sum())
            run.learn(loss, optimizer, schedule)
        run.scalars(step, loss=loss)

    score = evaluate(prepare(net, data, run), data, run, 1)
    trained = f"trained on {args.domain}" if args.steps else "not trained"
    run.say(f"{trained}; on the target: {line(score, data)}")
    note_round(run, data, 1, score=score)
    run.finish(net, report(score, data))


if __name__ == "__main__":
    main()
