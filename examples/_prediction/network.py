"""A trained network that predicts images of any size."""

from __future__ import annotations

import hashlib
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from _networks.build import build
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from selftrain_seg.confidence import fuse_views
from selftrain_seg.datasets import LabelMap
from selftrain_seg.teachers import predict_in_parts

AMP = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def is_model(name: str) -> bool:
    """Return whether a name is that of a model: a run, a file of weights, ``hf:FOLDER`` or ``module:factory``."""
    path = Path(name)
    return path.is_file() or (path / "model.pt").is_file() or (not path.exists() and ":" in name)


def open_network(args: Namespace, model: str, classes: LabelMap) -> nn.Module:
    """Build the network with the weights of ``model``, on its device and in evaluation mode."""
    is_path = Path(model).exists()
    settings = {"network": args.network, "channels": args.channels, "frozen_bn": False, "backbone_weights": None}
    settings |= {"init": Path(model) if is_path else None, "from_scratch": is_path}  # other models load their own
    net = build(Namespace(**settings), classes.num_classes)
    new = getattr(net, "new", ())
    if new:
        raise SystemExit(f"{model}: has no weights for {', '.join(new)} for these {classes.num_classes} classes")
    return net.to(device_of(args)).eval().requires_grad_(False)


def device_of(args: Namespace) -> torch.device:
    """Return the device of ``--device``."""
    return torch.device(args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def logits_of(net: nn.Module, images: Tensor, args: Namespace) -> Tensor:
    """Return logits (B, C, H, W) of images (B, D, H, W), or log-probabilities if several views are averaged."""
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


def fingerprint(model: str) -> str:
    """Return the SHA-256 of a model's file of weights, or the name of a model without one."""
    path = Path(model) / "model.pt" if Path(model).is_dir() else Path(model)
    if not path.is_file():
        return model
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    """Do what ``hashlib.file_digest`` does in Python 3.11 and later."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
