"""Soft pseudo-labels (CRST-LRENT) for a network of segmentation_models_pytorch.

A teacher labels each batch, because soft labels, with C numbers for each pixel, are too large to store.

``python examples/integrations/smp_network.py``
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from _benchmark import CLASSES, load
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from selftrain_seg.losses import cross_entropy
from selftrain_seg.selectors import select_soft
from selftrain_seg.teachers import MeanTeacher
from selftrain_seg.thresholds import ClassBalancedThreshold, linear_portion


def forever(loader: DataLoader) -> Iterator[list[torch.Tensor]]:
    """Yield batches without end, in a new order in each epoch."""
    while True:
        yield from loader


@torch.no_grad()
def score(network: nn.Module, val: TensorDataset) -> float:
    """Return the mIoU in percent, from the counts of the whole set."""
    network.eval()
    totals = torch.zeros(3, CLASSES)
    for images, labels in DataLoader(val, batch_size=50):
        predicted = network(images).argmax(dim=1)
        tp, fp, fn, _ = smp.metrics.get_stats(
            predicted, labels, mode="multiclass", ignore_index=255, num_classes=CLASSES
        )
        totals += torch.stack([tp, fp, fn]).sum(dim=1)
    return 100 * (totals[0] / totals.sum(dim=0)).nanmean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60, help="training steps in a round")
    parser.add_argument("--out", type=Path, default=Path("runs/integrations"))
    parser.add_argument("--smoke", action="store_true", help="train a few steps only, as a test")
    args = parser.parse_args()
    steps, source_steps = (2, 2) if args.smoke else (args.steps, 250)
    torch.manual_seed(0)

    source, target, val = load(args.smoke, args.out)
    source_loader = DataLoader(source, batch_size=8, shuffle=True)
    target_loader = DataLoader(target, batch_size=4, shuffle=True)

    network = smp.Unet("resnet18", encoder_weights=None, classes=CLASSES)
    supervised = smp.losses.SoftCrossEntropyLoss(smooth_factor=0.0, ignore_index=255)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for images, labels in islice(forever(source_loader), source_steps):
        loss = supervised(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"source only: mIoU {score(network, val):.1f}")
    update_bn(target_loader, network)
    print(f"BatchNorm re-estimated: mIoU {score(network, val):.1f}")

    teacher = MeanTeacher(network, momentum=0.99, train_mode=True, buffers="keep")
    for number in range(args.rounds):
        kc = ClassBalancedThreshold(CLASSES, portion=linear_portion(number, start=0.4, step=0.1))
        for images, _ in target_loader:
            kc.update(teacher(images))
        thresholds = kc.compute()
        network.train()
        pairs = zip(forever(source_loader), forever(target_loader), strict=False)
        for (source_images, source_labels), (target_images, _) in islice(pairs, steps):
            pseudo = select_soft(teacher(target_images), thresholds, alpha=0.25)
            loss = supervised(network(source_images), source_labels)
            loss = loss + cross_entropy(network(target_images), pseudo.soft)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            teacher.update(network)
        print(f"round {number + 1}: thresholds {thresholds.min():.3f} to {thresholds.max():.3f}")
        print(f"round {number + 1}: mIoU {score(teacher.model, val):.1f}")
        teacher.train()

    teacher.model.save_pretrained(args.out / "smp")


if __name__ == "__main__":
    main()
