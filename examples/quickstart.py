"""Adapt a segmentation network from a labelled "game" to an unlabelled "camera" by class-balanced self-training.

One command and nothing to download: ``python examples/quickstart.py``. It trains on the source domain of the
embedded benchmark, re-estimates BatchNorm on the target images, runs rounds of CBST and prints what each step gave.
``--compare`` adds the controls that such a number should stand beside. ``--method recommended`` trains with a mean
teacher instead, and says at the end, without target labels, whether that was of use.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import shutil
from pathlib import Path

import torch
from _common.files import code_digest, save_atomically
from _common.loading import as_floats
from _common.progress import progress
from _networks.small_unet import SmallUNet
from _quickstart.benchmark import batches, draw, streets
from _quickstart.online import SCORE, Recommended, verdict
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

CODE = code_digest(Path(__file__))  # what is kept for later runs was made by this very code
CLASSES = SyntheticStreets.classes
CONTROLS = {
    "source": "control: more source steps",
    "global": "one global threshold",
    "supervised": "upper bound: target labels",
}
NAMES = {"cbst": "CBST", "mrkld": "CRST-MRKLD", "recommended": "recommended recipe", **CONTROLS}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    methods = "class-balanced thresholds; these with CRST's regulariser; mean teacher, checked without target labels"
    parser.add_argument("--method", choices=("cbst", "mrkld", "recommended"), default="cbst", help=methods)
    parser.add_argument("--mine", action="store_true", help="train on target crops around the rarest classes")
    parser.add_argument("--compare", action="store_true", help="also run the controls")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="with several, the table has their mean")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120, help="training steps a round")
    parser.add_argument("--source-steps", type=int, default=1000)
    parser.add_argument("--images", type=int, nargs=3, default=[1000, 500, 200], help="source, target, validation")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; more are slower where cores are busy")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
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
    """Pseudo-label the target images: one pass for the thresholds, one for the labels."""
    estimator = GlobalThreshold if method == "global" else ClassBalancedThreshold
    select = select_hard if method == "global" else select_reweighted
    kc = estimator(len(CLASSES), portion).to(target.tensors[0].device)
    for images, _ in batches(target):
        kc.update(net(images))
    thresholds = kc.compute()

    statistics = SelectionStatistics(len(CLASSES)).to(thresholds.device)
    labels = []
    for images, truth in batches(target):  # the truth measures precision; nothing else sees it
        pseudo = select(net(images), thresholds)
        statistics.update(pseudo, truth)
        labels.append(pseudo.labels)
    return torch.cat(labels), thresholds, kc.class_counts(), statistics.compute()


def adapt(
    net: nn.Module,
    method: str,
    source: TensorDataset,
    target: TensorDataset,
    val: TensorDataset,
    args: argparse.Namespace,
    seed: int,
    recipe: Recommended | None = None,
) -> list[Tensor]:
    """Self-training in rounds: label the target images, train on both domains, and again.

    The recommended ``recipe`` labels the images of each step instead. Changes ``net``; returns the per-class IoU after
    each round.
    """
    settings = [CODE, args.source_steps, args.steps, args.images, args.mine, args.threads]
    key = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    history = []
    for number in range(args.rounds):
        checkpoint = args.out / "rounds" / f"{method}-seed{seed}-{key}-round{number + 1}.pt"
        if checkpoint.exists():  # a killed run continues from here
            saved = torch.load(checkpoint, map_location=args.device, weights_only=True)
            net.load_state_dict(saved["net"])
            if recipe is not None:
                recipe.load_state_dict(saved["recipe"])
            history.append(saved["iou"])
            print(f"{outcome(method, number + 1, history, recipe)} (from {checkpoint})")
            record(args.notes, run_name(args, method, seed), number + 1, args.steps, saved, target)
            continue
        torch.manual_seed(1000 * seed + number)
        generator = torch.Generator().manual_seed(1000 * seed + number)
        corner_generator = torch.Generator(args.device).manual_seed(1000 * seed + number)

        reestimate_batchnorm(net, target)
        labels, rare, notes = target.tensors[1], None, {}  # the labels that the bound trains on
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
            # The domains go through the network apart: in one batch BatchNorm would mix their statistics.
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
        history.append(evaluate(net, val, len(CLASSES)))
        notes |= {"iou": history[-1], "losses": torch.tensor([float(loss) for loss in losses])}
        saved = {"net": net.state_dict(), **notes}
        if recipe is not None:
            recipe.measure(net)
            saved["recipe"] = recipe.state_dict()
        save_atomically(saved, checkpoint)
        print(outcome(method, number + 1, history, recipe))
        record(args.notes, run_name(args, method, seed), number + 1, args.steps, saved, target)
    return history


def outcome(method: str, number: int, history: list[Tensor], recipe: Recommended | None) -> str:
    """Say how good the network is after a round."""
    checked = "" if recipe is None else f", {SCORE} {recipe.check.scores[-1]:.1f}"
    return f"{NAMES[method]}, round {number}: target mIoU {history[-1].nanmean():.1f}{checked}"


def run_name(args: argparse.Namespace, method: str, seed: int) -> str:
    """Name a run in the report's files."""
    return NAMES[method].replace(":", ",") + (f", seed {seed}" if len(args.seed) > 1 else "")


def run(args: argparse.Namespace, seed: int, results: dict[str, list[Tensor]], verdicts: dict[str, str]) -> None:
    """One seed: source training, BatchNorm re-estimation, adaptation, and with --compare the controls.

    Adds to ``results`` the per-class IoU of each network, and to ``verdicts`` what the recommended recipe says.
    """
    device, cache = torch.device(args.device), args.out / f"cache-{CODE}"
    splits = [("source", "train"), ("target", "train"), ("target", "val")]
    source, target, val = (
        streets(domain, split, length, seed, cache, device)
        for (domain, split), length in zip(splits, args.images, strict=True)
    )
    weights = cache / f"source-{len(source)}images-{args.source_steps}steps-{args.threads}threads-seed{seed}.pt"
    if not weights.exists():
        print(f"seed {seed}: training on {len(source)} source images, a minute or two; kept for later runs", flush=True)
        trained = train_source(source, len(CLASSES), steps=args.source_steps, seed=seed)
        save_atomically(trained.state_dict(), weights)
    net = SmallUNet(len(CLASSES)).to(device, memory_format=torch.channels_last)
    net.load_state_dict(torch.load(weights, map_location=device, weights_only=True))

    images, truth = (tensor[:3] for tensor in val.tensors)
    columns = {"source only": predict(net, images)}
    results.setdefault("source only", []).append(evaluate(net, val, len(CLASSES)))
    reestimate_batchnorm(net, target)
    columns["BatchNorm re-estimated"] = predict(net, images)
    results.setdefault("BatchNorm re-estimated", []).append(evaluate(net, val, len(CLASSES)))

    curves = {}
    for method in [args.method, *(CONTROLS if args.compare else ())]:
        adapted, recipe = copy.deepcopy(net), None
        if method == "recommended":
            recipe = Recommended(adapted, streets("source", "val", args.images[2], seed, cache, device), target)
            print(f"{NAMES[method]}, before training: {SCORE} {recipe.check.scores[0]:.1f}")
        before = [results[name][-1] for name in ("source only", "BatchNorm re-estimated")]
        for number, iou in zip((-1, 0), before, strict=True):
            record_round(args.notes, number, classes=CLASSES, iou=iou, group=run_name(args, method, seed))
        history = adapt(adapted, method, source, target, val, args, seed, recipe)
        if recipe is not None and history:
            verdicts[run_name(args, method, seed)] = verdict(recipe.check)
            record_check(args.notes, run_name(args, method, seed), recipe.check)
        curves[NAMES[method]] = [*before, *history]
        results.setdefault(NAMES[method], []).append(curves[NAMES[method]][-1])
        if method == args.method:
            columns[f"{NAMES[method]}, round {args.rounds}"] = predict(adapted, images)
            with torch.no_grad():
                top = top_confidence(adapted(as_floats(images[:4])))
            figure = confidence_map(top.log_confidence.exp(), images=images[:4])
            record_picture(args.notes, f"{run_name(args, method, seed)}, confidence", figure)
    columns = {"target image": images, **columns, "ground truth": truth}
    sheet = image_sheet(columns, palette=SyntheticStreets.palette, classes=CLASSES)
    record_picture(args.notes, f"predictions, seed {seed}", sheet)
    write_picture(args.out / "quickstart-report.png", sheet, curves, CLASSES)


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    args.notes = args.out / "quickstart"  # of this very run; checkpoints bring back what is older
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
    print(f"\nreport: {page}, its pictures in short: {args.out / 'quickstart-report.png'}")


if __name__ == "__main__":
    main()
