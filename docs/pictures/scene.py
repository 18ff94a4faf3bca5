"""What the pictures show: both domains of the synthetic benchmark and a network trained on the source."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import selftrain_seg
from pictures.training import SmallUNet, as_floats, reestimate_batchnorm, save, train_source
from selftrain_seg.datasets import SyntheticStreets

SIZE = (128, 256)
LENGTHS = {("source", "train"): 300, ("target", "train"): 100, ("target", "val"): 40}
STEPS = 500


class Scene(NamedTuple):
    """Images uint8 and labels uint8 of each part of the benchmark, and a network that knows the source only.

    ``source_only`` is as it was trained; ``net`` has the same weights, its BatchNorm re-estimated on target images.
    """

    source_only: SmallUNet
    net: SmallUNet
    source: TensorDataset
    target: TensorDataset
    val: TensorDataset
    cache: Path


def load(cache: Path) -> Scene:
    """Draw the images and train the network, or read them from the cache: about a minute and a half the first time."""
    parts = [_streets(domain, split, cache) for domain, split in LENGTHS]
    path = cache / f"guide-{selftrain_seg.__version__}-{STEPS}steps-both.pt"
    if not path.exists():
        trained = train_source(parts[0], steps=STEPS, batch=4)
        states = {"source_only": {name: value.clone() for name, value in trained.state_dict().items()}}
        reestimate_batchnorm(trained, parts[1])
        save({**states, "net": trained.state_dict()}, path)
    nets = {}
    for name, state in torch.load(path, weights_only=True).items():
        nets[name] = SmallUNet(SyntheticStreets.num_classes).to(memory_format=torch.channels_last).eval()
        nets[name].load_state_dict(state)
    return Scene(nets["source_only"], nets["net"], *parts, cache)


def _streets(domain: str, split: str, cache: Path) -> TensorDataset:
    length = LENGTHS[domain, split]
    path = cache / f"guide-{selftrain_seg.__version__}-{domain}-{split}-{length}.pt"
    if not path.exists():
        pairs = SyntheticStreets(domain, split, size=SIZE, length=length)
        images, labels = zip(*pairs, strict=True)
        content = {"images": (torch.stack(images) * 255).round().byte(), "labels": torch.stack(labels).byte()}
        save(content, path)
    saved = torch.load(path, weights_only=True)
    return TensorDataset(saved["images"], saved["labels"])


@torch.no_grad()
def logits_of(net: torch.nn.Module, images: Tensor) -> Tensor:
    """Predict uint8 images (N, 3, H, W); a mean over 3 × 3 takes away the checkerboard of the pixel-shuffle."""
    return torch.cat(
        [F.avg_pool2d(net(as_floats(part)), 3, 1, 1, count_include_pad=False) for part in images.split(10)]
    )
