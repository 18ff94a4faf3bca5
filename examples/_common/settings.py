"""The settings that all trainers share, and how they are read from the command line."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import tyro
from _data.settings import DataSettings
from _networks.settings import NetworkSettings

from _common.advice import in_options
from _common.defaults import defaults
from _common.loading import Unreadable


@dataclass(kw_only=True)
class Settings(DataSettings, NetworkSettings):
    """Settings of every trainer."""

    crop: tuple[int, int] | None = None  # height and width of training crops; default: the size of the first image
    largest_crop: tuple[int, int] = (512, 1024)  # largest height and width of the default crop
    scale_range: tuple[float, float] = (1.0, 1.0)
    """range of the random factor that resizes training images before the crop"""
    colour_jitter: tuple[float, float, float, float] = (0.2, 0.2, 0.2, 0.03)
    """largest random change of brightness, contrast, saturation and hue of training images; 0 0 0 0 disables it"""

    steps: int = 120  # optimizer steps, in each round if the trainer has rounds
    batch: int = 4  # images of each domain in a batch, over all processes
    accumulate: int = 1  # backward passes in a step, each with a batch of its own
    lr: float = 2e-3  # initial learning rate
    head_factor: float = 10.0  # learning rate of all layers outside a pre-trained backbone, as a multiple of --lr
    schedule: Literal["poly", "linear", "cosine", "constant"] = "poly"  # learning rate schedule; poly is (1 - t)^0.9
    decay_over: float = 1.0
    """length of the schedule, as a multiple of --steps; above 1, training stops before the rate is 0"""
    lr_warmup: float = 0.0  # share of --steps in which the learning rate rises from 0
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"  # sgd has a momentum of 0.9
    weight_decay: float | None = None  # default: 0.01 for adamw, 5e-4 for adam and sgd
    amp: Literal["no", "bf16", "fp16"] = "no"  # automatic mixed precision, in training, labelling and evaluation
    compile: bool = False  # compile the network with torch.compile
    workers: int = 0  # processes that load images, for each training process
    seed: int = 0  # seed of all random numbers, and of the synthetic benchmark
    device: str = "auto"  # auto, cpu, cuda or cuda:1; auto uses a GPU if there is one
    threads: int = 1  # CPU threads of a process; more are slower on busy cores

    scales: tuple[float, ...] = (1.0,)  # evaluation averages predictions at these scales of the images
    flip: bool = False  # evaluation also averages predictions of mirrored images
    label_scales: tuple[float, ...] = (1.0,)  # pseudo-labels come from predictions averaged over these scales
    label_flip: bool = False  # pseudo-labels also come from predictions of mirrored images
    fusion: Literal["probabilities", "logits"] = "probabilities"
    """what evaluation averages over scales and mirrored images"""
    eval_every: int = 0  # steps between evaluations; 0 evaluates only at the end of each round
    predict_batch: int = 0
    """images in a batch of labelling and evaluation; 0: as many as have 204,800 pixels, at least 1"""
    check: Literal["none", "restyled"] = "none"
    """restyled: at each evaluation, measure the mIoU on held-out source images in the colours of target images, and
    keep the best weights in kept.pt; this needs no target labels"""
    check_images: int = 64
    """largest number of source images to hold out, at most 1 in 8; streets draws extra images instead"""
    check_tolerance: float = 1.0
    """points of mIoU by which adaptation must improve the score of --check, or a larger share that of
    --reestimate-bn auto; below 0, the score of --check may fall by less than that"""

    out: Path = Path("runs") / Path(sys.argv[0]).stem  # folder of the run; the same command resumes it
    checkpoint_every: int = 100  # steps between checkpoints
    log_every: int = 10  # steps between log entries
    tracker: Literal["tensorboard", "wandb", "mlflow", "none"] = "tensorboard"  # where losses and mIoU are logged
    smoke: bool = False  # train a few steps on a few images, to test a command


T = TypeVar("T", bound=Settings)


def parse(kind: type[T], description: str | None, arguments: Sequence[str] | None = None) -> T:
    """Read a trainer's settings from the command line. Defaults depend on ``--data`` and ``--network``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    without_help = [argument for argument in arguments if argument not in ("-h", "--help")]
    given = tyro.cli(kind, default=kind(network=""), args=without_help, description=description)
    network = given.network or ("small-unet" if given.data == "streets" else "deeplabv2_resnet101")
    trainer = Path(getattr(sys.modules[kind.__module__], "__file__", None) or sys.argv[0]).stem
    chosen = {"network": network, **defaults(trainer, given.data, network)}
    pretrained = given.init or given.backbone_weights or not (given.from_scratch or ":" in network)
    if network != "small-unet" and not pretrained:  # a new network has no statistics worth freezing
        chosen["frozen_bn"] = False
    if given.smoke:
        chosen |= {"images": (16, 12, 8), "steps": 3, "warmup_steps": 3, "checkpoint_every": 2, "check_images": 8}
    offered = {field.name for field in dataclasses.fields(kind)}
    start = kind(**{name: value for name, value in chosen.items() if name in offered})
    return tyro.cli(kind, default=start, args=arguments, description=description)


_ONE_VALUE = "more than 1 value per channel"  # in an error of BatchNorm


def command_line(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate ``main``: unreadable files, and batches too small for BatchNorm, end the script with one line."""

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
        except Unreadable as error:
            raise SystemExit(in_options(error)) from None
        except ValueError as error:
            if _ONE_VALUE not in str(error):  # an error in the code
                raise
            raise SystemExit(
                f"BatchNorm of pooled features cannot learn from one image at a time ({error}): use a larger --batch, "
                "--resize if images differ in size, --frozen-bn or --reestimate-bn 0"
            ) from None

    return run
