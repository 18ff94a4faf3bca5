"""A trained network and images of any size, without the training stack: what predict.py and evaluate.py share."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _common.numbers import check
from _networks.build import NAMES, build
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as TF

from selftrain_seg.confidence import fuse_views
from selftrain_seg.datasets import LabelMap, SegmentationFolder
from selftrain_seg.teachers import predict_in_parts

PRESETS = {
    "cityscapes": LabelMap.cityscapes,
    "gta5": LabelMap.cityscapes,
    "synthia": LabelMap.cityscapes,  # the trainers' classes; its own ids are another matter
    "bdd100k": LabelMap.bdd100k,
    "voc": LabelMap.voc,
    "streets": LabelMap.streets,
}
AMP = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Item(NamedTuple):
    """An image that was read, or why it was not."""

    name: str
    image: Tensor | None  # (C, H, W), uint8 or in [0, 1]
    problem: str


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which network predicts, and how."""
    network = parser.add_argument_group("network", "what is not given is as the run was trained with")
    network.add_argument("--network", help=f"for a file of weights: {NAMES}")
    network.add_argument("--classes", help=f"a file for LabelMap.load, or one of {', '.join(PRESETS)}")
    images = parser.add_argument_group("images")
    images.add_argument("--names", help="which of them: a pattern, or a file of names; all by default")
    suffix = "what a mask's name has more than its image's, _mask say; files named so are not taken for images"
    images.add_argument("--mask-suffix", help=suffix)
    images.add_argument("--channels", type=int, help="3 repeats grey and leaves opacity out")
    images.add_argument("--white", type=int, help="value of white in images of 16 bits")
    how = parser.add_argument_group("prediction")
    how.add_argument("--resize", type=int, nargs=2, help="height and width that images get before the network")
    how.add_argument("--tile", type=int, nargs=2, help="height and width of the parts that large images go in")
    how.add_argument("--overlap", type=float, help="of the parts, as a share of their size; they are blended")
    how.add_argument("--scales", type=float, nargs="+", default=[1.0], help="of the images; probabilities are averaged")
    how.add_argument("--flip", action="store_true", help="mirror images, too")
    how.add_argument("--batch", type=int, default=1, help="images of one size at once")
    how.add_argument("--amp", choices=tuple(AMP), default="no", help="automatic mixed precision")
    how.add_argument("--device", default="auto", help="cpu, cuda or cuda:1; a GPU if there is one")
    how.add_argument("--workers", type=int, default=0, help="processes that read images")
    how.add_argument("--threads", type=int, default=1, help="CPU threads; more are slower where cores are busy")


def check_out(out: Path) -> None:
    """Refuse a folder that cannot be made or written to, before anything takes time."""
    there = next((path for path in (out, *out.parents) if os.path.exists(path)), Path())
    if not there.is_dir():
        raise SystemExit(f"--out {out}: expected a folder, {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SystemExit(f"--out {out}: {there} cannot be written to")


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Say in one line why the folder, or a file in it, could not be read or written."""
    try:
        yield
    except OSError as error:
        raise SystemExit(f"--out {out}: {error}") from None


def counted(number: int, what: str) -> str:
    """``1 image``, ``2 images``."""
    return f"{number} {what}{'s' * (number != 1)}"


def is_model(what: str) -> bool:
    """Tell a model from a folder of masks: a run, a file, or a name with a colon."""
    path = Path(what)
    return path.is_file() or (path / "model.pt").is_file() or (not path.exists() and ":" in what)


def complete(args: Namespace, model: str) -> LabelMap:
    """Fill in, from the run's own arguments, what was not given; returns the classes.

    A run's folder says which network its weights are of, and what it was trained on.
    """
    path = Path(model)
    folder = path if path.is_dir() else path.parent
    kept: dict[str, Any] = {}
    if path.exists():
        with_arguments = folder / "arguments.json"
        kept = json.loads(with_arguments.read_text(encoding="utf-8")) if with_arguments.is_file() else {}
    elif ":" in model:
        args.network = args.network or model
    else:
        raise SystemExit(f"{model}: no such run or file of weights")
    args.network = args.network or kept.get("network")
    if args.network is None:
        raise SystemExit(f"{model}: no arguments.json beside it says which network it is: --network, one of {NAMES}")
    defaults = {"channels": 3, "white": None, "resize": None, "tile": None, "overlap": 0.25, "mask_suffix": ""}
    for name, default in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, kept.get(name, default))
    check(args)
    return _classes(args.classes, folder, kept, model)


def open_network(args: Namespace, model: str, classes: LabelMap) -> nn.Module:
    """Build the network, with the weights of ``model``, ready to predict."""
    own = Path(model).exists()
    settings = {"network": args.network, "channels": args.channels, "frozen_bn": False, "backbone_weights": None}
    # What comes from elsewhere by name brings its own weights.
    settings |= {"init": Path(model) if own else None, "from_scratch": own}
    net = build(Namespace(**settings), classes.num_classes)
    new = getattr(net, "new", ())
    if new:
        raise SystemExit(f"{model}: has no weights for {', '.join(new)} for these {classes.num_classes} classes")
    return net.to(device_of(args)).eval().requires_grad_(False)


def device_of(args: Namespace) -> torch.device:
    """Return the device that ``--device`` names."""
    return torch.device(args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def logits_of(net: nn.Module, images: Tensor, args: Namespace) -> Tensor:
    """Logits (B, C, H, W) of images of one size; log-probabilities where several views are averaged."""
    images = images.to(device_of(args))
    images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    size = images.shape[-2:]
    if args.resize is not None:
        images = TF.resize(images, list(args.resize), antialias=True)
    images = images.contiguous(memory_format=torch.channels_last)
    tile = None if args.tile is None else (args.tile[0], args.tile[1])
    stride = None if tile is None else tuple(max(1, round(side * (1 - args.overlap))) for side in tile)

    def predict(view: Tensor) -> Tensor:
        return predict_in_parts(net, view, window=tile, stride=stride, taper=tile is not None)

    dtype = AMP[args.amp]
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
        if tuple(args.scales) == (1.0,) and not args.flip:
            logits = predict(images).float()
        else:
            probs = fuse_views(predict, images, scales=args.scales, flip=args.flip)
            logits = probs.clamp(min=torch.finfo(probs.dtype).tiny).log()  # resizing turns -inf into NaN
    return logits if logits.shape[-2:] == size else F.interpolate(logits, size, mode="bilinear")


def open_images(folder: Path, args: Namespace) -> SegmentationFolder:
    """Open a folder of images, without the masks that may lie among them."""
    try:
        images = SegmentationFolder(folder, names=args.names, channels=args.channels, white=args.white)
        suffix = os.path.splitext(args.mask_suffix)[0]
        if suffix:
            names = [name for name in images.names if not name.endswith(suffix)]
            if not names:
                raise SystemExit(f"{folder}: has nothing but masks by --mask-suffix {args.mask_suffix}")
            images = SegmentationFolder(folder, names=names, channels=args.channels, white=args.white)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None
    return images


def read(images: SegmentationFolder, places: Sequence[int], args: Namespace) -> Iterator[list[Item]]:
    """Yield images in order, those of one size together; an image that cannot be read says why."""
    loader = DataLoader(_Reading(images, places), batch_size=None, num_workers=args.workers)
    batch: list[Item] = []
    for item in loader:
        if batch and (len(batch) == args.batch or item.image is None or item.image.shape != batch[0].image.shape):
            yield batch
            batch = []
        if item.image is None:
            yield [item]
        else:
            batch.append(item)
    if batch:
        yield batch


class _Reading(Dataset[Item]):
    def __init__(self, images: SegmentationFolder, places: Sequence[int]) -> None:
        self.images, self.places = images, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Item:
        name = self.images.names[self.places[index]]
        try:
            image = self.images[self.places[index]][0].as_subclass(Tensor)
        except (OSError, ValueError) as error:
            return Item(name, None, str(error))
        if image.is_floating_point() and not 0 <= float(image.min()) <= float(image.max()) <= 1:
            low, high = float(image.min()), float(image.max())
            return Item(name, None, f"{name}: expected floating point from 0 to 1, got {low:g} to {high:g}: --white")
        return Item(name, image, "")


def fingerprint(model: str) -> str:
    """Tell weights from others: a digest of the file, or the name of what has no file."""
    path = Path(model) / "model.pt" if Path(model).is_dir() else Path(model)
    if not path.is_file():
        return model
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def load_classes(given: str) -> LabelMap:
    """Classes by the name of a preset, or from a file."""
    if given in PRESETS:
        return PRESETS[given]()
    if not Path(given).is_file():
        raise SystemExit(f"--classes {given}: no such file, and none of {', '.join(PRESETS)}")
    try:
        return LabelMap.load(given)
    except ValueError as error:
        raise SystemExit(f"--classes {error}") from None


def _classes(given: str | None, folder: Path, kept: dict[str, Any], model: str) -> LabelMap:
    if given is not None:
        return load_classes(given)
    if Path(model).exists() and (folder / "classes.json").is_file():
        return load_classes(str(folder / "classes.json"))
    known = kept.get("classes") if kept.get("data") == "folders" else kept.get("data")
    if known is None:
        raise SystemExit(f"{model}: nothing beside it says which classes it tells apart: --classes")
    return load_classes(known)
