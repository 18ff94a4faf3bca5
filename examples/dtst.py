"""DT-ST: a source-trained network adapts to target images alone (Zhao et al., CVPR 2023).

The teacher (DTU) follows the student only when it has improved on recent batches. It labels whole images; thresholds
follow a running confidence of each class, what it is sure a pixel is not is learnt, too, and its output is carried
into the student's scaled, cropped, mirrored and recoloured view. Every ``--refresh`` steps all images are labelled
(TCR): classes whose labels are steady from one of these snapshots to the next decide which images are drawn, and which
regions are pasted into others.

Differs from the published code: the student takes the snapshots, the teacher's running confidence selects their
labels, and before the first comparison the selected pixels' mean confidence counts; pasted are the classes below
``--tail-share`` of a snapshot, from images drawn apart; the strong view has jitter, grey and blur. Without
``--frozen-bn`` the teacher's BatchNorm works with the statistics of the batch.

``python examples/source_only.py && python examples/dtst.py --init runs/source_only/model.pt``
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _common import arguments
from _common.evaluation import evaluate, line, prepare, report, score_before
from _common.folders import Data, look_at_masks, open_data, relit
from _common.loading import Batches, as_floats
from _common.networks import build, optimizer_of
from _common.rounds import note_round, open_store, write_labels
from _common.run import Run
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from tqdm import tqdm

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.losses import cross_entropy, negative_loss
from selftrain_seg.mining import ClassBalancedSampler, ClassIndex, ReliabilityBank, classes_below, paste_classes
from selftrain_seg.selectors import RunningConfidenceSelector
from selftrain_seg.store import StoredRound
from selftrain_seg.teachers import DynamicTeacher
from selftrain_seg.views import StrongSettings, WeakStrongViews, replay

BRINGS = {
    **dict.fromkeys(("bicycle", "motorcycle"), "rider"),
    **dict.fromkeys(("light", "sign", "traffic light", "traffic sign"), "pole"),
}


def take_snapshot(
    net: nn.Module, data: Data, run: Run, bank: ReliabilityBank, selector: RunningConfidenceSelector, step: int
) -> None:
    """Label all target images, and find the classes of each whose labels are as they were in the snapshot before."""
    number = int(bank.snapshots)
    store = open_store(run, data, keep=() if number else ("confidence",))
    now = write_labels(prepare(net, data, run), data, run, store, number, selector.eval())
    note_round(run, data, number + 1, stored=now)
    before = store.round(number - 1) if number else None
    mine = range(run.rank, len(now), run.world)
    for place in tqdm(mine, f"comparing snapshot {number}", leave=False, disable=None if run.main else True):
        labels, confidence = now.read(place)[:2]
        previous = None if before is None else before.labels(place)[None]
        bank.update(torch.tensor([place]), labels[None], confidence[None], previous=previous)
    bank.refresh(step)
    net.train()
    selector.train()


def reliable_labels(snapshot: StoredRound, bank: ReliabilityBank, places: dict[str, int], name: str) -> Tensor:
    """Labels of one image's steady classes."""
    return bank.filter(snapshot.labels(name)[None], torch.tensor([places[name]]))[0]


def whole_image(size: Sequence[int], resize: Sequence[int] | None = None) -> Callable[[Any, Any], tuple[Tensor, Any]]:
    """Transform (image, labels) or (image, name) into tensors of one size.

    Args:
        size: images of other sizes are cut or padded to it.
        resize: in place of that, all are resized to this.
    """
    fill = {tv_tensors.Image: 0, tv_tensors.Mask: IGNORE_INDEX}
    cut = v2.RandomCrop(tuple(size), pad_if_needed=True, fill=fill)
    return functools.partial(_moved, cut if resize is None else v2.Resize(tuple(resize), antialias=True))


def _moved(move: Callable[..., Any], image: Tensor, labels: Any) -> tuple[Tensor, Any]:
    image, labels = move(image, tv_tensors.Mask(labels) if isinstance(labels, Tensor) else labels)
    return image.as_subclass(Tensor), labels.as_subclass(Tensor) if isinstance(labels, Tensor) else labels


def draw_batches(data: Data, run: Run, bank: ReliabilityBank) -> tuple[Batches, Batches, Tensor]:
    """Batches to learn from and to paste from, both by the classes that the last snapshot found steady.

    Also returns (C,) bool, the small classes.
    """
    args, number = run.args, int(bank.snapshots) - 1
    if not bank.candidates.any():
        raise SystemExit(
            f"snapshot {number}: no class of any image is steady, so there is nothing to draw images by. Are its "
            "labels empty, or all others than before? Start from a network that knows these classes (--init), lower "
            "--upper, or take snapshots more often (--refresh)"
        )
    snapshot = open_store(run, data).round(number)
    places = {name: place for place, name in enumerate(data.target.names)}
    donors = data.target_with(functools.partial(reliable_labels, snapshot, bank, places))
    index = ClassIndex(snapshot.counts, snapshot.pixels)
    transform = whole_image(args.tile or data.target[0][0].shape[-2:], args.train_resize)
    batches = []
    for name, dataset in (("target", data.target), ("donors", donors)):
        sampler = ClassBalancedSampler(
            index,
            candidates=bank.candidates,
            num_samples=args.refresh * args.accumulate * args.batch,
            seed=run.seed(name, number),
            rank=0,  # the order of all ranks; Batches shares it among them
            num_replicas=1,
        )
        batches.append(Batches(dataset, run, f"{name} {number}", transform, list(sampler)))
    tail = torch.zeros(index.num_classes, dtype=torch.bool)
    tail[classes_below(index.class_counts, share=args.tail_share)] = True
    return batches[0], batches[1], tail.to(run.device)


def main() -> None:
    parser = arguments.parser(
        __doc__,
        small={
            "steps": 360,
            "lr": 5e-4,
            "reestimate_bn": 1,
            "refresh": 60,
            "momentum": 0.9,
            "view_scale": [1.0, 1.0],
            "jitter": [0.2, 0.2, 0.2, 0.03],
            "paste_pixels": 8,
        },
        papers={
            "steps": 20000,
            "decay_steps": 62500,
            "batch": 4,
            "lr": 2.5e-4,
            "optimizer": "sgd",
            "train_resize": [512, 1024],
            "largest_crop": [512, 1024],
            "frozen_bn": True,
            "scales": [0.75],
            "checkpoint_every": 500,
        },
    )
    parser.add_argument("--train-resize", type=int, nargs=2, help="size of images in training only (default: none)")
    parser.add_argument("--decay-steps", type=int, help="at which the learning rate would be 0 (default: --steps)")
    parser.add_argument("--refresh", type=int, default=3000, help="steps between snapshots (TCR)")
    parser.add_argument("--view-scale", type=float, nargs=2, default=[0.75, 1.75], help="of the student's views")
    parser.add_argument("--jitter", type=float, nargs=4, default=[0.5, 0.5, 0.5, 0.2], help="of the student's colours")
    parser.add_argument("--momentum", type=float, default=0.99, help="of the teacher")
    parser.add_argument("--score", choices=("snd", "entropy"), default="snd", help="that the teacher goes by (DTU)")
    parser.add_argument("--upper", type=float, default=0.8, help="share of its class's peak a pixel must reach")
    parser.add_argument("--negative", type=float, default=0.5, help="weight of negative learning; 0 for none")
    parser.add_argument("--tail-share", type=float, default=0.03, help="of labelled pixels, below which to paste")
    parser.add_argument("--pastes", type=int, default=1, help="classes pasted into each image")
    parser.add_argument("--paste-pixels", type=int, default=20, help="that a pasted region must have")
    args = parser.parse_args()
    if args.init is None or args.data == "voc":
        raise SystemExit("DT-ST adapts a network trained on another domain: say which one with --init")
    run = Run(args)
    data = open_data(args, run, source_free=True)
    classes = data.label_map.classes
    companions = {
        classes.index(name): [classes.index(other)]
        for name, other in BRINGS.items()
        if name in classes and other in classes
    }
    torch.manual_seed(args.seed)
    net = build(args, len(classes)).to(run.device)
    look_at_masks(data, run)
    student = run.wrap(net)
    score_before(net, data, run)

    teacher = DynamicTeacher(net, momentum=args.momentum, score=args.score, train_mode=not args.frozen_bn)
    selector = RunningConfidenceSelector(len(classes), upper=args.upper).to(run.device)
    bank = ReliabilityBank(len(data.target), len(classes), every_steps=args.refresh)
    views = WeakStrongViews(
        args.crop,
        scale=args.view_scale,
        strong=StrongSettings(jitter=tuple(args.jitter), blur_sigma_px=(0.1, 1.0), cut_out_chance=0.0),
    )
    coloured = data.target[0][0].shape[0] == 3  # of other channels, none is a colour
    optimizer, schedule = optimizer_of(args, net, args.decay_steps or args.steps)
    student.train()
    state = {"net": net, "teacher": teacher, "selector": selector, "bank": bank}
    batches = None
    for step in run.steps("dtst", args.steps, optimizer=optimizer, schedule=schedule, **state):
        if bank.due(step):
            take_snapshot(net, data, run, bank, selector, step)
            batches = None
        if batches is None:
            target, donors, tail = batches = draw_batches(data, run, bank)
        for part in range(args.accumulate):
            images = as_floats(target[step * args.accumulate + part][0])
            teacher_logits = teacher(images)
            pseudo = selector(teacher_logits)

            # What belongs to the whole image, carried into the student's view of it.
            parameters = views.draw(images[:, :1].expand(-1, 3, -1, -1))  # whatever the channels are
            weak = replay(images, parameters)
            labels = replay(pseudo.labels, parameters)
            probs = replay(teacher_logits.float().softmax(dim=1), parameters, fill=1.0)

            # Regions of small classes, the more often the less the teacher sees of them.
            donor_images, donor_labels = donors[step * args.accumulate + part]
            drawn = views.draw(donor_images[:, :1].expand(-1, 3, -1, -1).float())
            source = (replay(as_floats(donor_images), drawn), replay(donor_labels, drawn))
            wanted = torch.where(tail, 1 - selector.running_confidence, 0.0)
            pasted = torch.zeros_like(labels, dtype=torch.bool)
            for _ in range(args.pastes):
                weak, labels, _, region = paste_classes(
                    weak,
                    labels,
                    wanted,
                    source=source,
                    companions=companions,
                    min_class_pixels=5 * args.paste_pixels // 2,
                    min_pixels=args.paste_pixels,
                )
                pasted |= region
            probs = probs.masked_fill(pasted[:, None], 1.0)  # there the teacher saw something else

            with run.forward(student):
                strong = views.strong(weak, parameters) if coloured else relit(weak, args.jitter[0])
                logits = student(strong)
                # Divided by all pixels, as published: the fewer have labels, the less these count.
                loss = positive = cross_entropy(logits, labels, normalize="all")
                if args.negative:
                    total = negative_loss(logits, probs, loss_weight=args.negative, reduction="sum")
                    loss = positive + run.mean(total, (probs <= 1 / len(classes)).sum())
            if part == 0:
                teacher.observe(images, net)  # before the student learns from it
            run.learn(loss, optimizer, schedule)
        teacher.update(net)
        run.scalars(
            step,
            loss=positive,
            negative_loss=loss - positive,
            selected=(pseudo.labels != IGNORE_INDEX).float().mean(),
            teacher_updates=float(teacher.teacher.step),
        )

    last = int(bank.snapshots) + 1
    score = evaluate(prepare(net, data, run), data, run, last)
    note_round(run, data, last, score=score)
    run.say(f"DT-ST, {int(teacher.teacher.step)} updates of the teacher: {line(score, data)}")
    run.finish(net, report(score, data))


if __name__ == "__main__":
    main()
