"""The arguments that all trainers share."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DATA = ("streets", "gta5", "synthia", "bdd100k", "voc", "folders")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Shows the defaults, which depend on ``--network``."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        unsaid = action.default is None or action.default is False or action.default == argparse.SUPPRESS
        return text if unsaid or "default" in text else f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """A parser whose ``small`` and ``papers`` defaults go before those of its arguments, whenever these were added."""

    small: dict[str, Any]
    papers: dict[str, Any]

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        first = _first().parse_known_args(args)[0]
        first.network = first.network or ("small-unet" if first.data == "streets" else "deeplabv2_resnet101")
        chosen = {**self._settings(first), "network": first.network}
        if first.smoke:
            known = {action.dest for action in self._actions}
            few = {"images": [16, 12, 8], "steps": 3, "warmup_steps": 3, "checkpoint_every": 2}
            chosen |= {name: value for name, value in few.items() if name in known}
        self.set_defaults(**chosen)
        return super().parse_args(args, namespace)

    def _settings(self, first: argparse.Namespace) -> dict[str, Any]:
        if first.network == "small-unet":
            return self.small
        # What is not known to come with statistics of BatchNorm cannot have them frozen.
        given = first.init is not None or first.backbone_weights is not None
        pretrained = given or not (first.from_scratch or ":" in first.network)
        return self.papers if pretrained else {**self.papers, "frozen_bn": False}


def _first() -> argparse.ArgumentParser:
    """What the defaults of other arguments depend on."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--data", "--network", "--init", "--backbone-weights"):
        first.add_argument(name, default="streets" if name == "--data" else None)
    for name in ("--from-scratch", "--smoke"):
        first.add_argument(name, action="store_true")
    return first


def parser(description: str | None, *, small: dict[str, Any], papers: dict[str, Any]) -> Parser:
    """Make a parser whose defaults depend on ``--network``.

    Args:
        description: the script's docstring.
        small: defaults for ``small-unet``, chosen on the embedded benchmark.
        papers: defaults for all other networks, those of the paper: for a pre-trained ResNet on large images.
    """
    made = Parser(description=description, formatter_class=_Help, allow_abbrev=False)
    made.small, made.papers = small, papers
    presets = made.add_argument_group("data")
    presets.add_argument("--data", choices=DATA, default="streets", help="what to adapt from and to")
    presets.add_argument("--source-root", type=Path, help="folder of GTA5 or SYNTHIA, for bdd100k of Cityscapes, too")
    presets.add_argument(
        "--root", type=Path, help="folder of Cityscapes, BDD100K or VOC; of the embedded benchmark's files"
    )
    presets.add_argument("--images", type=int, nargs=3, default=[1000, 500, 200], help="streets: train, train, val")
    presets.add_argument("--labelled", type=int, default=106, help="voc: one image in so many is labelled")

    own = made.add_argument_group("--data folders")
    own.add_argument("--source-images", type=Path, help="folder of the images to learn from")
    own.add_argument("--source-masks", type=Path, help="their masks")
    own.add_argument("--source-names", help="which of them: a pattern, or a file of names (default: all)")
    own.add_argument("--target-images", type=Path, help="folder of the images to adapt to")
    own.add_argument("--target-masks", type=Path, help="their masks, if there are: precision is measured by them")
    own.add_argument("--target-names", help="which of them")
    own.add_argument("--val-images", type=Path, help="folder of target images to measure on")
    own.add_argument("--val-masks", type=Path, help="their masks")
    own.add_argument("--val-names", help="which of them")
    own.add_argument("--classes", type=Path, help="what the masks hold: .json or .csv, see LabelMap.load")
    own.add_argument("--mask-suffix", default="", help="what a mask is called more than its image, _mask say")
    own.add_argument("--channels", type=int, default=3, help="of the images; 3 repeats grey and leaves opacity out")
    own.add_argument("--white", type=int, help="value of white in images of 16 bits (default: 65535)")

    sizes = made.add_argument_group("sizes")
    sizes.add_argument("--resize", type=int, nargs=2, help="height and width that all images get first")
    sizes.add_argument("--tile", type=int, nargs=2, help="height and width of the parts that large images go in")
    sizes.add_argument("--overlap", type=float, default=0.25, help="of the parts, as a share of their size")
    sizes.add_argument("--crop", type=int, nargs=2, help="height and width of training crops (default: the image)")
    sizes.add_argument("--largest-crop", type=int, nargs=2, default=[512, 1024], help="that is chosen without --crop")

    network = made.add_argument_group("network")
    network.add_argument(
        "--network",
        default="small-unet",
        help="small-unet, deeplabv2_resnet101, efficientnet-lite0-unet, a name of torchvision, Unet/resnet34 of "
        "segmentation_models_pytorch, hf:FOLDER of transformers, or module:factory, your own",
    )
    network.add_argument("--init", type=Path, help="weights to start from: another run, or a published DeepLabV2")
    network.add_argument("--backbone-weights", type=Path, help="file of a pre-trained backbone, not to be downloaded")
    network.add_argument("--from-scratch", action="store_true", help="no pre-trained backbone (which is downloaded)")
    network.add_argument(
        "--frozen-bn",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="BatchNorm as it is, neither statistics nor weights move",
    )
    network.add_argument(
        "--reestimate-bn",
        type=int,
        choices=(0, 1),
        default=0,
        help="statistics of target images before labels and mIoU",
    )

    training = made.add_argument_group("training")
    training.add_argument("--steps", type=int, default=120, help="optimizer steps, of each round where there are any")
    training.add_argument("--batch", type=int, default=4, help="images of each domain a step, over all processes")
    training.add_argument("--accumulate", type=int, default=1, help="backward passes a step; each has its own batch")
    training.add_argument("--lr", type=float, default=2e-3, help="learning rate at the start")
    training.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw", help="with which --lr goes")
    training.add_argument("--amp", choices=("no", "bf16", "fp16"), default="no", help="automatic mixed precision")
    training.add_argument("--compile", action="store_true", help="torch.compile the network")
    training.add_argument("--workers", type=int, default=0, help="processes that read images")
    training.add_argument("--seed", type=int, default=0, help="of all that is random, the benchmark too")
    training.add_argument("--device", default="auto", help="cpu, cuda or cuda:1; a GPU if there is one")
    training.add_argument("--threads", type=int, default=1, help="CPU threads; more are slower where cores are busy")

    evaluation = made.add_argument_group("evaluation")
    evaluation.add_argument(
        "--scales", type=float, nargs="+", default=[1.0], help="of the images; probabilities are averaged"
    )
    evaluation.add_argument("--flip", action="store_true", help="mirror images, too")

    made.add_argument(
        "--out", type=Path, default=Path("runs") / Path(sys.argv[0]).stem, help="a killed run goes on here"
    )
    made.add_argument("--checkpoint-every", type=int, default=100, help="steps")
    made.add_argument("--log-every", type=int, default=10, help="steps, for TensorBoard")
    made.add_argument("--smoke", action="store_true", help="a few steps only, to see that everything runs")
    return made


def check(args: argparse.Namespace) -> None:
    """One error for each number that no run can have, before anything is read."""
    least = {"steps": 0, "warmup_steps": 0, "rounds": 0, "workers": 0, "refresh": 1, "turn": 1, "stride": 1}
    least |= dict.fromkeys(("batch", "accumulate", "threads", "checkpoint_every", "log_every", "channels"), 1)
    for name, bound in least.items():
        value = getattr(args, name, None)
        if value is not None and value < bound:
            raise SystemExit(f"--{name.replace('_', '-')} {value}: expected at least {bound}")
    for name in ("crop", "largest_crop", "tile", "resize"):
        if min(getattr(args, name) or [1]) < 1:
            raise SystemExit(f"--{name} {getattr(args, name)}: expected a height and a width of at least 1")
    for name in ("lr", "warmup_lr", "judge_lr"):
        value = getattr(args, name, None)
        if value is not None and not 0 < value < math.inf:
            raise SystemExit(f"--{name.replace('_', '-')} {value:g}: expected a number above 0")
    for name in ("portion", "source_portion"):
        given = getattr(args, name, None)
        if given is None:
            continue
        start, step, stop = given
        if not (0 < start <= stop <= 1 and 0 <= step <= 1):
            raise SystemExit(
                f"--{name.replace('_', '-')} {start:g} {step:g} {stop:g}: expected start, step and stop as shares of 1 "
                "with start at most stop, such as 0.2 0.05 0.5"
            )
    for scale in getattr(args, "scales", []):
        if not 0 < scale < math.inf:
            raise SystemExit(f"--scales {scale:g}: expected numbers above 0")
    if getattr(args, "data", "folders") != "folders":
        for part in ("source", "target", "val"):
            for what in ("images", "masks", "names"):
                if getattr(args, f"{part}_{what}", None) is not None:
                    raise SystemExit(f"--{part}-{what} needs --data folders")
        if getattr(args, "classes", None) is not None:
            raise SystemExit("--classes needs --data folders")
    if not 0 <= args.overlap < 1:
        raise SystemExit(f"--overlap {args.overlap}: expected a share from 0 to less than 1")
