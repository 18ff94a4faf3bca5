"""Data, a source network and a score for the scripts in this folder. In your project, you have these already."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassJaccardIndex

sys.path.insert(0, str(Path(__file__).parents[1]))

from _common.files import code_digest, save_atomically
from _networks.small_unet import SmallUNet
from _quickstart.benchmark import streets
from _quickstart.training import train_source

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.datasets import SyntheticStreets

CODE = code_digest(Path(__file__))  # later runs reuse files of the same code only
CLASSES = SyntheticStreets.num_classes
torch.set_num_threads(1)  # more are slower on busy cores


def load(smoke: bool, cache: Path) -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Return source, target and validation images with labels; those of target images are for scores only.

    Images are float32 in [0, 1], labels int64. They are drawn once and stored in ``cache`` until the code changes.
    """
    lengths = (16, 16, 8) if smoke else (500, 400, 150)
    splits = (("source", "train"), ("target", "train"), ("target", "val"))
    tensors = [
        streets(domain, split, length, seed=0, cache=cache / CODE, device=torch.device("cpu")).tensors
        for (domain, split), length in zip(splits, lengths, strict=True)
    ]
    source, target, val = (TensorDataset(images.float() / 255, labels.long()) for images, labels in tensors)
    return source, target, val


def source_network(source: TensorDataset, smoke: bool, cache: Path) -> nn.Module:
    """Train a small U-Net on the source domain once, and store it in ``cache`` until the code changes."""
    path, network = cache / CODE / f"source-{len(source)}.pt", SmallUNet(CLASSES)
    if not path.exists():
        images, labels = source.tensors
        steps = 4 if smoke else 500
        trained = train_source(TensorDataset((images * 255).round().byte(), labels), CLASSES, steps=steps, seed=0)
        save_atomically(trained.state_dict(), path)
    network.load_state_dict(torch.load(path, weights_only=True))
    return network


@torch.no_grad()
def score(network: nn.Module, val: TensorDataset) -> float:
    """Return the mIoU in percent, from one confusion matrix over the whole set, on the network's device."""
    network.eval()
    device = next(network.parameters()).device
    iou = MulticlassJaccardIndex(CLASSES, ignore_index=IGNORE_INDEX, sync_on_compute=False).to(device)
    for images, labels in DataLoader(val, batch_size=50):
        iou.update(network(images.to(device)).argmax(dim=1), labels.to(device))
    return 100 * iou.compute().item()
