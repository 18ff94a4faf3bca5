"""The settings that all trainers share, and the command line that they are read from."""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import tyro
from _data.settings import DataSettings
from _networks.settings import NetworkSettings

from _common.defaults import defaults
from _common.loading import Unreadable


@dataclass(kw_only=True)
class Settings(DataSettings, NetworkSettings):
    """Settings of every trainer."""

    crop: tuple[int, int] | None = None  # height and width of training crops; by default that of the first image
    largest_crop: tuple[int, int] = (512, 1024)  # the default crop is no larger
    scale_range: tuple[float, float] = (1.0, 1.0)  # training images are resized by a random factor before the crop
    colour_jitter: tuple[float, float, float, float] = (0.2, 0.2, 0.2, 0.03)
    """brightness, contrast, saturation and hue of training images change by up to so much; 0 0 0 0: not at all"""

    steps: int = 120  # optimizer steps, of each round where there are rounds
    batch: int = 4  # images of each domain in a step, over all processes
    accumulate: int = 1  # backward passes a step, each with a batch of its own
    lr: float = 2e-3  # learning rate at the start
    head_factor: float = 10.0  # how many times as fast all but the backbone of a pre-trained network learns
    schedule: Literal["poly", "linear", "cosine", "constant"] = "poly"  # of the learning rate; poly: (1 - t)^0.9
    decay_over: float = 1.0  # how many times --steps the schedule takes to reach 0; with more than 1 it ends before
    lr_warmup: float = 0.0  # share of --steps in which the learning rate rises from 0
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"  # AdamW, Adam, or SGD with momentum 0.9
    weight_decay: float | None = None  # by default 0.01 with AdamW, 5e-4 with the others
    amp: Literal["no", "bf16", "fp16"] = "no"  # automatic mixed precision, in training, labelling and evaluation
    compile: bool = False  # torch.compile the network
    workers: int = 0  # processes that read images
    seed: int = 0  # of everything random, the embedded benchmark included
    device: str = "auto"  # cpu, cuda or cuda:1; a GPU if there is one
    threads: int = 1  # CPU threads; more are slower where cores are busy

    scales: tuple[float, ...] = (1.0,)  # evaluation averages what the network says of images at these scales
    flip: bool = False  # evaluation mirrors images, too
    label_scales: tuple[float, ...] = (1.0,)  # pseudo-labels come from the average of what is said at these scales
    label_flip: bool = False  # and of mirrored images, too
    fusion: Literal["probabilities", "logits"] = "probabilities"  # what evaluation averages
    eval_every: int = 0  # evaluate every so many steps; 0: at the end of each round only
    predict_batch: int = 0  # images that labelling and evaluation predict at once; 0: as many as are small
    check: Literal["none", "restyled"] = "none"
    """restyled: with each evaluation, measure the mIoU on held-out source images in the colours of target images, which
    needs no target labels, and keep the best weights in kept.pt"""
    check_images: int = 64  # most source images to hold out; streets draws them, of other data it is an eighth at most
    check_tolerance: float = 1.0
    """points of mIoU that adaptation, or a larger share of --reestimate-bn auto, must gain; below 0, points that it may
    lose"""

    out: Path = Path("runs") / Path(sys.argv[0]).stem  # folder of the run; the same command resumes it
    checkpoint_every: int = 100  # steps between checkpoints
    log_every: int = 10  # steps between entries of the tracker
    tracker: Literal["tensorboard", "wandb", "mlflow", "none"] = "tensorboard"  # where losses are logged
    smoke: bool = False  # a few steps only, to see that everything runs


T = TypeVar("T", bound=Settings)


def parse(kind: type[T], description: str | None, words: Sequence[str] | None = None) -> T:
    """Read a trainer's settings from the command line; defaults depend on ``--data`` and ``--network``."""
    words = sys.argv[1:] if words is None else words
    without_help = [word for word in words if word not in ("-h", "--help")]
    given = tyro.cli(kind, default=kind(network=""), args=without_help, description=description)
    network = given.network or ("small-unet" if given.data == "streets" else "deeplabv2_resnet101")
    trainer = Path(getattr(sys.modules[kind.__module__], "__file__", None) or sys.argv[0]).stem
    chosen = {"network": network, **defaults(trainer, given.data, network)}
    pretrained = given.init or given.backbone_weights or not (given.from_scratch or ":" in network)
    if network != "small-unet" and not pretrained:  # without statistics there is nothing to freeze
        chosen["frozen_bn"] = False
    if given.smoke:
        chosen |= {"images": (16, 12, 8), "steps": 3, "warmup_steps": 3, "checkpoint_every": 2, "check_images": 8}
    offered = {field.name for field in dataclasses.fields(kind)}
    start = kind(**{name: value for name, value in chosen.items() if name in offered})
    return tyro.cli(kind, default=start, args=words, description=description)


# What the library says of its Python arguments, and what a user of the command line does about it.
_ADVICE = {
    r"`?read_masks=[\"']first[\"']`?": "--read-masks first",
    r"LabelMap\.from_colours": "columns name,r,g,b in a .csv file for --classes",
    r"`mask_suffix` or `pair` says": "--mask-suffix says",
    r"`names` which images to take": "--source-names and its like which images to take",
    r"`unpaired=\"leave out\"` takes": "--leave-out-unpaired takes",
    r", `masks=None` does without": "",
    r"verify\(check_meaning=False\) accepts": "--no-check-meaning accepts",
    r"`(label_map)`": "--classes",
    r"`one_in`": "--labelled",
    r"`(white|channels|names)`": r"--\1",
}


def in_options(error: Exception | str) -> str:
    """Say an error of the library in the options of the command line."""
    text = str(error)
    if isinstance(error, Unreadable):  # a worker's traceback comes as the text of its error
        text = text.rstrip().rpartition("\n")[2].rpartition("Unreadable: ")[2]
    if "more than 1 value per channel" in text:
        return (
            f"BatchNorm of pooled features cannot learn from one image at a time ({text}): a larger --batch, --resize "
            "where images have sizes of their own, --frozen-bn or --reestimate-bn 0"
        )
    for pattern, option in _ADVICE.items():
        text = re.sub(pattern, option, text)
    return text


def command_line(main: Callable[[], None]) -> Callable[[], None]:
    """End a script with one line where the library refuses a file or BatchNorm a batch."""

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
        except (Unreadable, ValueError) as error:
            if isinstance(error, ValueError) and in_options(error) == str(error):  # no option could change it
                raise
            raise SystemExit(in_options(error)) from None

    return run
