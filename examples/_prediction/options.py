"""Options of predict.py and evaluate.py; what a run was trained with is read from its folder."""

from __future__ import annotations

import argparse
import json
import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _common import advice
from _common.numbers import check
from _networks.build import NAMES

from _prediction.network import AMP
from selftrain_seg.datasets import LabelMap

PRESETS = {
    "cityscapes": LabelMap.cityscapes,
    "gta5": LabelMap.cityscapes,
    "synthia": LabelMap.cityscapes,  # the classes that trainers use; masks of SYNTHIA itself have other ids
    "bdd100k": LabelMap.bdd100k,
    "voc": LabelMap.voc,
    "streets": LabelMap.streets,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the network, of images, and of prediction."""
    network = parser.add_argument_group("network", "by default as in the training run")
    network.add_argument("--network", help=f"architecture of a file of weights: {NAMES}")
    network.add_argument("--classes", help=f"file for LabelMap.load, or one of {', '.join(PRESETS)}")
    images = parser.add_argument_group("images")
    images.add_argument("--names", help="images to use: a pattern, or a file of names; all by default")
    suffix = "end of a mask's name after the name of its image, such as _mask; such files are not read as images"
    images.add_argument("--mask-suffix", help=suffix)
    images.add_argument("--channels", type=int, help="channels of the images; 3 repeats grey and drops opacity")
    images.add_argument("--white", type=int, help="value of white in 16-bit images")
    prediction = parser.add_argument_group("prediction")
    prediction.add_argument("--resize", type=int, nargs=2, help="resize images to this height and width")
    prediction.add_argument("--tile", type=int, nargs=2, help="predict tiles of this height and width, and blend them")
    prediction.add_argument("--overlap", type=float, help="overlap of tiles, as a share of their size")
    scales = "average the probabilities over images resized by these factors"
    prediction.add_argument("--scales", type=float, nargs="+", default=[1.0], help=scales)
    prediction.add_argument("--flip", action="store_true", help="also average over mirrored images")
    prediction.add_argument("--batch", type=int, default=1, help="images of the same size per batch")
    prediction.add_argument("--amp", choices=tuple(AMP), default="no", help="automatic mixed precision")
    prediction.add_argument("--device", default="auto", help="cpu, cuda or cuda:1; auto: a GPU if there is one")
    prediction.add_argument("--workers", type=int, default=0, help="processes that read images")
    prediction.add_argument("--threads", type=int, default=1, help="CPU threads; one is fastest where cores are busy")


# What the users of predict.py and evaluate.py read where trainers have other options.
ADVICE = {
    "`names`": "--names",
    r"`unpaired=.* to do without masks": "or --partial to leave out images without a mask",
    r"; `read_masks=\"first\"` reads the first channel": "; save the masks with one channel",
    r", or read the first channel with `read_masks=\"first\"`": ", or save the masks with one channel",
    r"SegmentationFolder\(.*, read_masks=\"ids\"\) reads .*": "save the masks without a palette if the indices are ids",
    r"LabelMap\.bdd100k\(\)": "--classes bdd100k",
}


def in_options(error: Exception) -> str:
    """Translate an error of the library: name options instead of Python arguments."""
    return advice.in_options(error, ADVICE)


def check_out(out: Path) -> None:
    """Refuse an output folder that cannot be created or written to."""
    existing = next((path for path in (out, *out.parents) if os.path.exists(path)), Path())
    if not existing.is_dir():
        raise SystemExit(f"--out {out}: expected a folder, {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise SystemExit(f"--out {out}: {existing} is not writable")


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn an error of the file system into one line."""
    try:
        yield
    except OSError as error:
        raise SystemExit(f"--out {out}: {error}") from None


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 image``, ``2 images``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def complete(args: Namespace, model: str) -> LabelMap:
    """Fill in the options that were not given from ``arguments.json`` of the training run; return the classes."""
    path = Path(model)
    folder = path if path.is_dir() else path.parent
    kept: dict[str, Any] = {}
    if path.exists():
        arguments = folder / "arguments.json"
        kept = json.loads(arguments.read_text(encoding="utf-8")) if arguments.is_file() else {}
    elif ":" in model:
        args.network = args.network or model
    else:
        raise SystemExit(f"{model}: no such run or file of weights")
    args.network = args.network or kept.get("network")
    if args.network is None:
        raise SystemExit(f"{model}: no arguments.json beside it names the network: expected --network, one of {NAMES}")
    defaults = {"channels": 3, "white": None, "resize": None, "tile": None, "overlap": 0.25, "mask_suffix": ""}
    for name, default in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, kept.get(name, default))
    check(args)
    return _classes(args.classes, folder, kept, model)


def load_classes(given: str) -> LabelMap:
    """Load classes by the name of a preset, or from a file."""
    if given in PRESETS:
        return PRESETS[given]()
    if not Path(given).is_file():
        raise SystemExit(f"--classes {given}: expected a file, or one of {', '.join(PRESETS)}")
    try:
        return LabelMap.load(given)
    except ValueError as error:
        raise SystemExit(f"--classes {in_options(error)}") from None


def _classes(given: str | None, folder: Path, kept: dict[str, Any], model: str) -> LabelMap:
    if given is not None:
        return load_classes(given)
    if Path(model).exists() and (folder / "classes.json").is_file():
        return load_classes(str(folder / "classes.json"))
    known = kept.get("classes") if kept.get("data") == "folders" else kept.get("data")
    if known is None:
        raise SystemExit(f"{model}: no file beside it names the classes: expected --classes")
    return load_classes(known)
