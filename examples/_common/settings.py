"""The settings that all trainers share, and the command line that they are read from."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
from _data.settings import DataSettings
from _networks.settings import NetworkSettings

from _common.defaults import defaults


@dataclass(kw_only=True)
class Settings(DataSettings, NetworkSettings):
    """Settings of every trainer."""

    crop: tuple[int, int] | None = None  # height and width of training crops; by default that of the first image
    largest_crop: tuple[int, int] = (512, 1024)  # the default crop is no larger
    scale_range: tuple[float, float] = (1.0, 1.0)  # training images are resized by a random factor before the crop

    steps: int = 120  # optimizer steps, of each round where there are rounds
    batch: int = 4  # images of each domain in a step, over all processes
    accumulate: int = 1  # backward passes a step, each with a batch of its own
    lr: float = 2e-3  # learning rate at the start
    head_factor: float = 10.0  # how many times as fast the head of a pre-trained network learns
    schedule: Literal["poly", "constant"] = "poly"  # of the learning rate
    optimizer: Literal["adamw", "sgd"] = "adamw"  # AdamW, or SGD with momentum 0.9
    amp: Literal["no", "bf16", "fp16"] = "no"  # automatic mixed precision, in training, labelling and evaluation
    compile: bool = False  # torch.compile the network
    workers: int = 0  # processes that read images
    seed: int = 0  # of everything random, the embedded benchmark included
    device: str = "auto"  # cpu, cuda or cuda:1; a GPU if there is one
    threads: int = 1  # CPU threads; more are slower where cores are busy

    scales: tuple[float, ...] = (1.0,)  # evaluation averages what the network says of images at these scales
    flip: bool = False  # evaluation mirrors images, too
    fusion: Literal["probabilities", "logits"] = "probabilities"  # what evaluation averages
    eval_every: int = 0  # evaluate every so many steps; 0: at the end of each round only
    predict_batch: int = 0  # images that labelling and evaluation predict at once; 0: as many as are small

    out: Path = Path("runs") / Path(sys.argv[0]).stem  # folder of the run; the same command resumes it
    checkpoint_every: int = 100  # steps between checkpoints
    log_every: int = 10  # steps between entries of the tracker
    tracker: Literal["tensorboard", "wandb", "mlflow", "none"] = "tensorboard"  # where losses are logged
    smoke: bool = False  # a few steps only, to see that everything runs


T = TypeVar("T", bound=Settings)


def parse(kind: type[T], description: str | None, words: Sequence[str] | None = None) -> T:
    """Read a trainer's settings from the command line; defaults depend on ``--data`` and ``--network``."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--data", "--network", "--init", "--backbone-weights"):
        first.add_argument(name)
    for name in ("--from-scratch", "--smoke"):
        first.add_argument(name, action="store_true")
    given = first.parse_known_args(words)[0]
    data = given.data or "streets"
    network = given.network or ("small-unet" if data == "streets" else "deeplabv2_resnet101")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    chosen = {name: value for name, value in defaults(trainer_of(kind), data, network).items() if name in fields}
    pretrained = given.init or given.backbone_weights or not (given.from_scratch or ":" in network)
    if network != "small-unet" and not pretrained:  # without statistics there is nothing to freeze
        chosen["frozen_bn"] = False
    if given.smoke:
        few = {"images": (16, 12, 8), "steps": 3, "warmup_steps": 3, "checkpoint_every": 2}
        chosen |= {name: value for name, value in few.items() if name in fields}
    start = kind(**{**chosen, "network": network})
    return tyro.cli(kind, default=start, args=words, description=description)


def trainer_of(kind: type) -> str:
    """Name of the trainer that a class of settings belongs to, that of its file."""
    file = getattr(sys.modules[kind.__module__], "__file__", None)
    return Path(file or sys.argv[0]).stem


def check(settings: Any) -> None:
    """One error for each number that no run can have, before anything is read."""
    least = {"steps": 0, "warmup_steps": 0, "rounds": 0, "workers": 0, "eval_every": 0, "predict_batch": 0}
    least |= dict.fromkeys(("batch", "accumulate", "threads", "checkpoint_every", "log_every", "channels"), 1)
    least |= {"refresh": 1, "turn": 1, "stride": 1, "views": 1, "teacher_every": 1, "patch": 1}
    for name, value in vars(settings).items():
        option, pair = f"--{name.replace('_', '-')}", isinstance(value, (list, tuple))
        shown = " ".join(f"{part:g}" for part in value) if pair and all(map(_is_number, value)) else value
        if name in least and value < least[name]:
            raise SystemExit(f"{option} {value}: expected at least {least[name]}")
        if name in ("crop", "largest_crop", "tile", "resize") and value is not None and min(value) < 1:
            raise SystemExit(f"{option} {shown}: expected a height and a width of at least 1")
        if re.fullmatch(r"(\w+_)?lr", name) and not 0 < value < math.inf:
            raise SystemExit(f"{option} {value:g}: expected a number above 0")
        if name in ("portion", "source_portion") and value is not None:
            start, step, stop = value
            if not (0 < start <= stop <= 1 and 0 <= step <= 1):
                raise SystemExit(
                    f"{option} {shown}: expected start, step and stop as shares of 1 with start at most stop, such as "
                    "0.2 0.05 0.5"
                )
        if name in ("scales", "scale_range") and not all(0 < scale < math.inf for scale in value):
            raise SystemExit(f"{option} {shown}: expected numbers above 0")
    if not 0 <= settings.overlap < 1:
        raise SystemExit(f"--overlap {settings.overlap}: expected a share from 0 to less than 1")
    if getattr(settings, "data", "folders") != "folders":
        own = [f"{part}_{what}" for part in ("source", "target", "val") for what in ("images", "masks", "names")]
        for name in (*own, "classes"):
            if getattr(settings, name, None) is not None:
                raise SystemExit(f"--{name.replace('_', '-')} needs --data folders")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


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


class Unreadable(Exception):
    """An image or mask that cannot be read; its text says which, and why."""


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
