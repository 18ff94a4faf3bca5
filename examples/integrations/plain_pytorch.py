"""Rounds of class-balanced self-training (CBST, with CRST's MRKLD) in a plain PyTorch loop.

``python examples/integrations/plain_pytorch.py``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from _benchmark import CLASSES, load, score, source_network
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from selftrain_seg.losses import mrkld_loss
from selftrain_seg.selectors import SelectionStatistics, select_reweighted
from selftrain_seg.thresholds import ClassBalancedThreshold, linear_portion


def batches(dataset: TensorDataset, steps: int, seed: int) -> DataLoader:
    """Return a loader of random batches of four images, one for each step."""
    generator = torch.Generator().manual_seed(seed)
    sampler = RandomSampler(dataset, replacement=True, num_samples=4 * steps, generator=generator)
    return DataLoader(dataset, batch_size=4, sampler=sampler)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100, help="training steps in a round")
    parser.add_argument("--out", type=Path, default=Path("runs/integrations"))
    parser.add_argument("--smoke", action="store_true", help="train a few steps only, as a test")
    args = parser.parse_args()
    rounds, steps = (2, 2) if args.smoke else (args.rounds, args.steps)
    torch.manual_seed(0)

    source, target, val = load(args.smoke, args.out)
    network = source_network(source, args.smoke, args.out)
    in_order = DataLoader(target, batch_size=8)
    print(f"source only: mIoU {score(network, val):.1f}")
    update_bn(in_order, network)
    print(f"BatchNorm re-estimated: mIoU {score(network, val):.1f}")

    for number in range(rounds):
        network.eval()
        kc = ClassBalancedThreshold(CLASSES, portion=linear_portion(number, start=0.3, step=0.1))
        with torch.no_grad():
            for images, _ in in_order:
                kc.update(network(images))
        thresholds = kc.compute()

        labels, statistics = [], SelectionStatistics(CLASSES)
        with torch.no_grad():
            for images, truth in in_order:
                pseudo = select_reweighted(network(images), thresholds)
                labels.append(pseudo.labels)
                statistics.update(pseudo, truth)  # the true labels are for precision only
        found = statistics.compute()
        print(f"round {number + 1}: thresholds {thresholds.min():.3f} to {thresholds.max():.3f}")
        print(f"round {number + 1}: selected {found.share.nanmean():.2f}, precision {found.precision.nanmean():.2f}")

        network.train()
        labelled = TensorDataset(target.tensors[0], torch.cat(labels))
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
        pairs = zip(batches(source, steps, 2 * number), batches(labelled, steps, 2 * number + 1), strict=True)
        for (source_images, source_labels), (target_images, target_labels) in pairs:
            # One batch for each domain, because a joint batch would mix their statistics.
            loss = F.cross_entropy(network(source_images), source_labels, ignore_index=255)
            loss = loss + mrkld_loss(network(target_images), target_labels, reg_weight=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        update_bn(in_order, network)  # training has mixed the statistics of both domains
        print(f"round {number + 1}: mIoU {score(network, val):.1f}")

    torch.save(network.state_dict(), args.out / "plain.pt")


if __name__ == "__main__":
    main()
