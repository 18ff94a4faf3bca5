"""Adapt a segmentation network from labelled "game" images to unlabelled "camera" images by self-training.

``python examples/quickstart.py`` downloads nothing. It trains on the source domain of the synthetic benchmark,
re-estimates BatchNorm on the target images, runs rounds of CBST, and prints the mIoU after each step. ``--compare``
also runs controls. ``--method recommended`` trains with a mean teacher instead, and a check without target labels says
whether adaptation helped.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch
from _common.files import code_digest, save_atomically
from _common.loading import as_floats
from _common.progress import progress
from _common.scores import SCORE
from _networks.small_unet import SmallUNet
from _quickstart.benchmark import Splits, batches, draw, open_splits, streets
from _quickstart.online import Recommended, verdict
from _quickstart.pages import LOSS_EVERY, print_round, print_table, record, record_check, write_picture, write_results
from _quickstart.training import evaluate, jitter, predict, reestimate_batchnorm, train_source
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from selftrain_seg.confidence import top_confidence
from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.losses import cross_entropy, mrkld_loss
from selftrain_seg.mining import crop, mine_crops, rare_classes
from selftrain_seg.selectors import SelectionStatistics, SelectionSummary, select_hard, select_reweighted
from selftrain_seg.thresholds import ClassBalancedThreshold, GlobalThreshold, linear_portion
from selftrain_seg.visualize import confidence_map, image_sheet, record_about, record_picture, record_round, report

CODE = code_digest(Path(__file__))  # part of the names of cached files, so other code does not read them
CLASSES = SyntheticStreets.classes
CONTROLS = {
    "source": "control: more source steps",
    "global": "one global threshold",
    "supervised": "upper bound: target labels",
}
NAMES = {"cbst": "CBST", "mrkld": "CRST-MRKLD", "recommended": "recommended recipe", **CONTROLS}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    methods = "cbst: class-balanced thresholds; mrkld: with CRST's regulariser; recommended: mean teacher with a check"
    parser.add_argument("--method", choices=("cbst", "mrkld", "recommended"), default="cbst", help=methods)
    parser.add_argument("--mine", action="store_true", help="train on target crops around the rarest classes")
    parser.add_argument("--compare", action="store_true", help="also run the controls")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="with several, the table shows their mean")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of self-training")
    parser.add_argument("--steps", type=int, default=120, help="training steps of a round")
    parser.add_argument("--source-steps", type=int, default=1000, help="training steps on the source")
    parser.add_argument("--images", type=int, nargs=3, default=[1000, 500, 200], help="source, target, validation")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; one is fastest where cores are busy")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder of the run")
    parser.add_argument("--smoke", action="store_true", help="a few steps only, to see that everything runs")
    args = parser.parse_args()
    if args.mine and args.method == "recommended":
        parser.error("--mine needs the labels of a whole round: expected --method cbst or mrkld, got recommended")
    if args.smoke:
        args.images, args.source_steps, args.steps, args.rounds = [16, 16, 8], 4, 2, 2
    return args


@torch.no_grad()
def label_target(
    net: nn.Module, target: TensorDataset, method: str, portion: float
) -> tuple[Tensor, Tensor, Tensor, SelectionSummary]:
    """Label the target images: one pass for the thresholds, one for the labels.

    Returns the labels (N, H, W), the thresholds (C,), the pixels predicted as each class (C,), and statistics.
    """
    estimator = GlobalThreshold if method == "global" else ClassBalancedThreshold
    select = select_hard if method == "global" else select_reweighted
    kc = estimator(len(CLASSES), portion).to(target.tensors[0].device)
    for images, _ in batches(target):
        kc.update(net(images))
    thresholds = kc.compute()

    statistics = SelectionStatistics(len(CLASSES)).to(thresholds.device)
    labels = []
    for images, truth in batches(target):  # the truth is only used to measure precision
        pseudo = select(net(images), thresholds)
        statistics.update(pseudo, truth)
        labels.append(pseudo.labels)
    return torch.cat(labels), thresholds, kc.class_counts(), statistics.compute()


def train_round(
    net: nn.Module,
    method: str,
    number: int,
    data: Splits,
    args: argparse.Namespace,
    seed: int,
    recipe: Recommended | None = None,
) -> dict[str, Any]:
    """Label the target images, then train on both domains; the recommended ``recipe`` labels each batch instead.

    Changes ``net``. Returns the round's checkpoint.
    """
    source, target = data.source, data.target
    torch.manual_seed(1000 * seed + number)
    generator = torch.Generator().manual_seed(1000 * seed + number)
    corner_generator = torch.Generator(args.device).manual_seed(1000 * seed + number)

    reestimate_batchnorm(net, target)
    labels, rare, notes = target.tensors[1], None, {}  # the true labels, for the upper bound
    if method in ("cbst", "mrkld", "global"):
        portion = linear_portion(number, start=0.3, step=0.1, stop=0.5)
        labels, thresholds, counts, summary = label_target(net, target, method, portion)
        rare = rare_classes(counts, k=3)
        print_round(f"{NAMES[method]}, round {number + 1}, portion {portion}", CLASSES, thresholds, summary)
        notes = {"thresholds": thresholds, "selected": summary.share, "precision": summary.precision}
        notes |= {"labels": labels[:3].clone(), "rare": rare}
    size = (target.tensors[0].shape[-2] * 3 // 4, target.tensors[0].shape[-1] * 3 // 4)  # of crops
    if args.mine:
        notes["crop"] = torch.tensor(size)

    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, args.steps, power=0.9)
    losses = []
    for step in progress(range(args.steps), f"{NAMES[method]} round {number + 1}", unit="step"):
        # Separate forward passes: in a joint batch, BatchNorm would mix the statistics of the two domains.
        images, truth = source[draw(source, 4, generator)]
        loss = cross_entropy(net(jitter(as_floats(images))), truth)
        if recipe is not None:
            loss = loss + recipe.loss(net, target.tensors[0][draw(target, 4, generator)])
        else:
            if method == "source":
                images, chosen = source[draw(source, 4, generator)]
            else:
                index = draw(target, 4, generator)
                images, chosen = target.tensors[0][index], labels[index]
            if args.mine and rare is not None:
                corners = mine_crops(chosen, rare, size, generator=corner_generator)
                images, chosen = crop(images, corners, size), crop(chosen, corners, size)
            target_loss = mrkld_loss if method == "mrkld" else cross_entropy
            loss = loss + target_loss(net(jitter(as_floats(images))), chosen)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % LOSS_EVERY == 0:
            losses.append(loss.detach())

    reestimate_batchnorm(net, target)
    notes |= {"iou": evaluate(net, data.val, len(CLASSES)), "losses": torch.tensor([float(loss) for loss in losses])}
    if recipe is not None:
        recipe.measure(net)
        notes["recipe"] = recipe.state_dict()
    return {"net": net.state_dict(), **notes}


def adapt(
    net: nn.Module,
    method: str,
    data: Splits,
    args: argparse.Namespace,
    seed: int,
    recipe: Recommended | None = None,
) -> list[Tensor]:
    """Run all rounds; a round that an earlier attempt has finished is loaded.

    Changes ``net``. Returns the IoU of each class after each round.
    """
    settings = [CODE, args.source_steps, args.steps, args.images, args.mine, args.threads]
    key = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    history = []
    for number in range(args.rounds):
        checkpoint = args.out / "rounds" / f"{method}-seed{seed}-{key}-round{number + 1}.pt"
        resumed = checkpoint.exists()
        if resumed:
            saved = torch.load(checkpoint, map_location=args.device, weights_only=True)
            net.load_state_dict(saved["net"])
            if recipe is not None:
                recipe.load_state_dict(saved["recipe"])
        else:
            saved = train_round(net, method, number, data, args, seed, recipe)
            save_atomically(saved, checkpoint)
        history.append(saved["iou"].cpu())  # a checkpoint is loaded to the device
        checked = "" if recipe is None else f", {SCORE} {recipe.check.scores[-1]:.1f}"
        origin = f" (from {checkpoint})" if resumed else ""
        print(f"{NAMES[method]}, round {number + 1}: target mIoU {saved['iou'].nanmean():.1f}{checked}{origin}")
        record(args.notes, run_name(args, method, seed), number + 1, args.steps, saved, data.target)
    return history


def run_name(args: argparse.Namespace, method: str, seed: int) -> str:
    """Return the name of a run in the report."""
    return NAMES[method].replace(":", ",") + (f", seed {seed}" if len(args.seed) > 1 else "")


def source_network(source: TensorDataset, args: argparse.Namespace, seed: int) -> nn.Module:
    """Train a network on the source images, or load the one of an earlier run."""
    name = f"source-{len(source)}images-{args.source_steps}steps-{args.threads}threads-seed{seed}.pt"
    path = args.cache / name
    if not path.exists():
        print(f"seed {seed}: training on {len(source)} source images, a minute or two; kept for later runs", flush=True)
        trained = train_source(source, len(CLASSES), steps=args.source_steps, seed=seed)
        save_atomically(trained.state_dict(), path)
    net = SmallUNet(len(CLASSES)).to(args.device, memory_format=torch.channels_last)
    net.load_state_dict(torch.load(path, map_location=args.device, weights_only=True))
    return net


def run(args: argparse.Namespace, seed: int, results: dict[str, list[Tensor]], verdicts: dict[str, str]) -> None:
    """Run one seed: source training, BatchNorm re-estimation, adaptation, and with --compare the controls.

    Adds the IoU of each class of each network to ``results``, and the verdict of the recommended recipe to
    ``verdicts``.
    """
    data = open_splits(args.images, seed, args.cache, args.device)
    net = source_network(data.source, args, seed)
    images, truth = (tensor[:3] for tensor in data.val.tensors)
    columns = {"source only": predict(net, images)}
    before = [evaluate(net, data.val, len(CLASSES))]
    reestimate_batchnorm(net, data.target)
    columns["BatchNorm re-estimated"] = predict(net, images)
    before.append(evaluate(net, data.val, len(CLASSES)))
    for name, iou in zip(columns, before, strict=True):
        results.setdefault(name, []).append(iou)

    curves = {}
    for method in [args.method, *(CONTROLS if args.compare else ())]:
        name, adapted, recipe = run_name(args, method, seed), copy.deepcopy(net), None
        if method == "recommended":
            held_out = streets("source", "val", args.images[2], seed, args.cache, args.device)
            recipe = Recommended(adapted, held_out, data.target)
            print(f"{NAMES[method]}, before training: {SCORE} {recipe.check.scores[0]:.1f}")
        for number, iou in zip((-1, 0), before, strict=True):
            record_round(args.notes, number, classes=CLASSES, iou=iou, group=name)
        history = adapt(adapted, method, data, args, seed, recipe)
        if recipe is not None and history:
            verdicts[name] = verdict(recipe.check)
            record_check(args.notes, name, recipe.check)
        curves[NAMES[method]] = [*before, *history]
        results.setdefault(NAMES[method], []).append(curves[NAMES[method]][-1])
        if method == args.method:
            columns[f"{NAMES[method]}, round {args.rounds}"] = predict(adapted, images)
            with torch.no_grad():
                top = top_confidence(adapted(as_floats(images[:4])))
            figure = confidence_map(top.log_confidence.exp(), images=images[:4])
            record_picture(args.notes, f"{name}, confidence", figure)
    columns = {"target image": images, **columns, "ground truth": truth}
    sheet = image_sheet(columns, palette=SyntheticStreets.palette, classes=CLASSES)
    record_picture(args.notes, f"predictions, seed {seed}", sheet)
    write_picture(args.out / "quickstart-report.png", sheet, curves, CLASSES)


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    args.cache = args.out / f"cache-{CODE}"
    args.notes = args.out / "quickstart"  # of this run only; finished rounds are recorded again
    shutil.rmtree(args.notes, ignore_errors=True)
    record_about(args.notes)
    results: dict[str, list[Tensor]] = {}
    verdicts: dict[str, str] = {}
    for seed in args.seed:
        run(args, seed, results, verdicts)
    print_table(results, CLASSES, SyntheticStreets.rare)
    for name, text in verdicts.items():
        print(f"\n{name}: {text}")
    write_results(args.notes, args, results, CLASSES, SyntheticStreets.rare, verdicts)
    page = report(args.notes, args.out / "report.html")
    print(f"\nreport: {page}; picture: {args.out / 'quickstart-report.png'}")


if __name__ == "__main__":
    main()
