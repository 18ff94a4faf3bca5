"""Supervised training, BatchNorm re-estimation and evaluation."""

from __future__ import annotations

import torch
from _common.loading import as_floats
from _common.progress import progress
from _networks.small_unet import SmallUNet
from kornia.augmentation import ColorJiggle
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from torch.utils.data import TensorDataset
from torchmetrics.classification import MulticlassJaccardIndex

from _quickstart.benchmark import batches, draw
from selftrain_seg import IGNORE_INDEX

jitter = ColorJiggle(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.03, p=1.0)


def train_source(
    dataset: TensorDataset, num_classes: int, *, steps: int, seed: int, batch: int = 8, lr: float = 4e-3
) -> nn.Module:
    """Train a new network on labelled images with AdamW, a one-cycle schedule and light colour jitter."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = SmallUNet(num_classes).to(dataset.tensors[0].device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    bar = progress(range(steps), "training on source", unit="step")
    for step in bar:
        index = draw(dataset, batch, generator)
        images, labels = dataset[index]
        loss = F.cross_entropy(net(jitter(as_floats(images))), labels.long(), ignore_index=IGNORE_INDEX)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return net


def reestimate_batchnorm(net: nn.Module, dataset: TensorDataset) -> None:
    """Replace BatchNorm's running statistics by those of these images, without labels; sets evaluation mode."""
    update_bn((images for images, _ in batches(dataset)), net)
    net.eval()


@torch.no_grad()
def evaluate(net: nn.Module, dataset: TensorDataset, num_classes: int) -> Tensor:
    """Return the IoU of each class (C,) in percent, over all images."""
    net.eval()
    metric = MulticlassJaccardIndex(num_classes, average=None, ignore_index=IGNORE_INDEX)
    metric = metric.to(dataset.tensors[0].device)
    for images, labels in batches(dataset):
        metric.update(net(images).argmax(dim=1), labels)
    return 100 * metric.compute().cpu()


@torch.no_grad()
def predict(net: nn.Module, images: Tensor) -> Tensor:
    """Return the labels (N, H, W) of uint8 images (N, 3, H, W), on the CPU."""
    return net.eval()(as_floats(images)).argmax(dim=1).cpu()
