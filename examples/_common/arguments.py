"""The arguments that all trainers share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

DATA = ("streets", "gta5", "synthia", "voc")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Shows the defaults, which depend on ``--data``."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        unsaid = action.default is None or action.default is False or action.default == argparse.SUPPRESS
        return text if unsaid or "default" in text else f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """A parser whose ``chosen`` defaults go before those of its arguments, whenever these were added."""

    chosen: dict[str, Any]
    smoke: dict[str, Any]

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        known = {action.dest for action in self._actions}
        smoke = {name: value for name, value in self.smoke.items() if name in known}
        self.set_defaults(**{**self.chosen, **smoke})
        return super().parse_args(*args, **kwargs)


def parser(description: str | None, *, streets: dict[str, Any], papers: dict[str, Any]) -> Parser:
    """Make a parser whose defaults depend on ``--data``.

    Args:
        description: the script's docstring.
        streets: defaults for the embedded benchmark.
        papers: defaults for real data, those of the paper.
    """
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("--data", choices=DATA, default="streets", help="what to adapt from and to (default: streets)")
    made = Parser(description=description, parents=[data], formatter_class=_Help)
    folders = made.add_argument_group("data")
    folders.add_argument("--source-root", type=Path, help="folder of GTA5 or SYNTHIA")
    folders.add_argument("--root", type=Path, help="folder of Cityscapes or VOC; of the embedded benchmark's files")
    folders.add_argument("--images", type=int, nargs=3, default=[1000, 500, 200], help="streets: train, train, val")
    folders.add_argument("--labelled", type=int, default=106, help="voc: one image in so many is labelled")
    folders.add_argument("--crop", type=int, nargs=2, help="height and width of training crops (default: the image)")
    folders.add_argument("--workers", type=int, default=0, help="processes that read images")

    network = made.add_argument_group("network")
    network.add_argument(
        "--network", default="small-unet", help="small-unet, deeplabv2_resnet101, or a name of torchvision"
    )
    network.add_argument("--init", type=Path, help="weights to start from (model.pt of another run)")
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
    chosen = data.parse_known_args()[0].data
    made.chosen = streets if chosen == "streets" else {"network": "deeplabv2_resnet101", **papers}
    few = {"images": [16, 12, 8], "steps": 3, "warmup_steps": 3, "checkpoint_every": 2}
    made.smoke = few if "--smoke" in sys.argv else {}
    return made
