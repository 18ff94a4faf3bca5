"""Study why self-training helps or hurts on real images: variants that change one thing each, and full recipes.

A network is trained on labelled source images. Each variant adapts it to unlabelled target images for a few steps, and
is evaluated on other target images. Target masks are only used for evaluation, except by variants named "oracle" or
"bound", which train on them. All variants of a seed see the same source batches. Results are written to a JSON file
after each variant; the same command resumes an interrupted study.

``python examples/study_real.py --source IMAGES MASKS NAMES --target IMAGES MASKS NAMES --val IMAGES MASKS NAMES
--classes classes.json --resize 120 160``; NAMES is a pattern, ``*`` for all images. ``--list`` shows the variants.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _common.files import save_atomically
from _study.labels import Predictions
from _study.measuring import measure
from _study.network import build
from _study.probe import probe, probe_table
from _study.results import Results, checks, gains, table
from _study.training import adapt, train_source
from _study.variants import VARIANTS
from _study.world import World, open_world
from torch import nn

from selftrain_seg.datasets import LabelMap


def source_model(name: str, seed: int, world: World, results: Results, args: argparse.Namespace) -> nn.Module:
    """Load the network trained on the source, or train it."""
    path = args.out / f"{name}-seed{seed}.pt"
    if path.exists() and results.get(name, seed, "source only") is not None:
        net = build(name, len(world.classes))
        net.load_state_dict(torch.load(path, weights_only=True))
        return net
    net, about = train_source(name, seed, world, args)
    save_atomically(net.state_dict(), path)
    results.put(name, seed, "source only", {**measure(net, world), **about})
    return net


def study(seed: int, world: World, results: Results, args: argparse.Namespace) -> None:
    """Run the probe, or all variants without a result, from one source model."""
    net = source_model(args.network, seed, world, results, args)
    start = results.get(args.network, seed, "source only")["mIoU"]
    print(f"seed {seed}, source only: mIoU {start:.1f}", flush=True)
    if args.probe:
        if results.get(args.network, seed, "probe") is None:
            results.put(args.network, seed, "probe", probe(net, world))
        print(probe_table(results.get(args.network, seed, "probe")))
        return
    first: dict[float, Predictions] = {}
    for name in args.variants:
        if results.get(args.network, seed, name) is not None:
            continue
        variant = VARIANTS[name] if args.steps is None else replace(VARIANTS[name], steps=args.steps)
        result = adapt(args.network, net, variant, seed, world, args.lr, first)
        results.put(args.network, seed, name, result)
        rounds = ", ".join(f"{one['mIoU']:.1f}" for one in result.get("rounds", [result]))
        averaged, minutes = result.get("averaged weights", result)["mIoU"], result["minutes"]
        print(f"seed {seed}, {name}: mIoU {rounds}; averaged {averaged:.1f}; {minutes:.1f} min", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folders: Any = {"nargs": 3, "action": "append", "metavar": ("IMAGES", "MASKS", "NAMES")}
    parser.add_argument("--source", **folders, help="labelled source images; may be repeated, like --target and --val")
    parser.add_argument("--target", **folders, help="target images to adapt to")
    parser.add_argument("--val", **folders, help="target images to evaluate on")
    parser.add_argument("--classes", type=Path, help="classes of the masks, a file for LabelMap.load")
    parser.add_argument("--resize", type=int, nargs=2, default=(120, 160), help="height and width of all images")
    parser.add_argument("--network", choices=("pretrained", "small-unet"), default="pretrained")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), help="variants, by default all")
    parser.add_argument("--steps", type=int, help="steps of each round, instead of those of the variant")
    parser.add_argument("--source-steps", type=int, default=600)
    parser.add_argument("--source-lr", type=float, default=2e-3)
    parser.add_argument("--lr", type=float, default=5e-4, help="learning rate of adaptation")
    parser.add_argument("--show", nargs="*", help="classes in the table")
    parser.add_argument("--compare", nargs=2, metavar=("CONTROL", "BOUND"), help="also show gains over the control")
    parser.add_argument("--tolerance", type=float, default=0.5, help="tolerance of the check without target labels")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder of the results")
    parser.add_argument("--probe", action="store_true", help="only compare gradients of pseudo-labels and true labels")
    parser.add_argument("--list", action="store_true", help="list the variants")
    parser.add_argument("--table", action="store_true", help="only show the table of existing results")
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{name}: {variant}" for name, variant in VARIANTS.items()))
        return
    for name in ("classes",) if args.table else ("source", "target", "val", "classes"):
        if getattr(args, name) is None:
            parser.error(f"expected --{name}")
    if unknown := [name for name in args.variants if name not in VARIANTS]:
        parser.error(f"--variants: expected some of --list, got {unknown}")
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.out / "results.json")
    if not args.table:
        shared = ("source", "target", "val", "resize", "steps", "source_steps", "source_lr", "lr")
        results.made_with(args.network, {name: json.loads(json.dumps(getattr(args, name))) for name in shared})
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        world = open_world(args.source, args.target, args.val, args.classes, args.resize)
        sizes = {part: len(getattr(world, part).images) for part in ("source", "held_out", "target", "val")}
        print(f"images: {sizes}", flush=True)
        for seed in args.seeds:
            study(seed, world, results, args)
    print(table(results, args.network, args.seeds, args.show or LabelMap.load(args.classes).classes))
    if args.compare:
        print(f"\n{gains(results, args.network, args.seeds, *args.compare)}")
        for score in ("restyled source", "restyled source, histograms"):
            print(f"\n{score}\n\n{checks(results, args.network, args.seeds, score, args.tolerance)}")


if __name__ == "__main__":
    main()
