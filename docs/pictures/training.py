"""Training and evaluation on tensors in memory: what the pictures need of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from kornia.augmentation import ColorJiggle
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from torch.utils.data import TensorDataset
from torchmetrics.classification import MulticlassJaccardIndex
from tqdm import trange

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.datasets import SyntheticStreets

try:
    from _networks.small_unet import SmallUNet
except ModuleNotFoundError:
    from _common.model import SmallUNet

__all__ = ["SmallUNet", "as_floats", "batches", "evaluate", "jitter", "reestimate_batchnorm", "save", "train_source"]

jitter = ColorJiggle(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.03, p=1.0)


def save(content: Any, path: Path) -> None:
    """Write a file that is either complete or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    torch.save(content, temporary)
    temporary.replace(path)


def as_floats(images: Tensor) -> Tensor:
    """Convert uint8 images to float32 in [0, 1], channels last."""
    return (images.float() / 255).contiguous(memory_format=torch.channels_last)


def batches(dataset: TensorDataset, size: int = 50) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images float32, labels int64) of the whole set in order."""
    for images, labels in zip(*(tensor.split(size) for tensor in dataset.tensors), strict=True):
        yield as_floats(images), labels.long()


def train_source(dataset: TensorDataset, *, steps: int, batch: int, lr: float = 4e-3) -> nn.Module:
    """Train a new network on labelled images: AdamW, one cycle, light colour jitter."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    net = SmallUNet(SyntheticStreets.num_classes).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for _ in trange(steps, desc="training on source", unit="step", disable=None):
        images, labels = dataset[torch.randint(len(dataset), (batch,), generator=generator)]
        loss = F.cross_entropy(net(jitter(as_floats(images))), labels.long(), ignore_index=IGNORE_INDEX)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


def reestimate_batchnorm(net: nn.Module, dataset: TensorDataset) -> None:
    """Replace BatchNorm's running statistics by those of another domain's images. No labels are used."""
    update_bn((images for images, _ in batches(dataset)), net)
    net.eval()


@torch.no_grad()
def evaluate(net: nn.Module, dataset: TensorDataset) -> float:
    """Return the mIoU in percent, from one confusion matrix over the whole set."""
    net.eval()
    metric = MulticlassJaccardIndex(SyntheticStreets.num_classes, average="macro", ignore_index=IGNORE_INDEX)
    for images, labels in batches(dataset):
        metric.update(net(images).argmax(dim=1), labels)
    return float(100 * metric.compute())
