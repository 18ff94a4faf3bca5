"""A mean teacher with class-balanced thresholds and ClassMix as a Lightning module.

The module contains the teacher, the thresholds and their counts, so they move with it and are in its checkpoints.
``--devices 2`` trains on two processes, and ``--resume`` continues after the last finished epoch.

``python examples/integrations/lightning_module.py``
"""

# ruff: noqa: D102 (the methods are Lightning's)

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning as L
import torch
from _benchmark import CLASSES, load, score, source_network
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, DistributedSampler
from torchmetrics.classification import MulticlassJaccardIndex

from selftrain_seg.losses import cross_entropy
from selftrain_seg.mining import class_mix
from selftrain_seg.selectors import select_reweighted
from selftrain_seg.teachers import MeanTeacher
from selftrain_seg.thresholds import ClassBalancedThreshold


class SelfTraining(L.LightningModule):
    """Adapt a network. The thresholds of an epoch come from the teacher's predictions in the epoch before."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.student = network.train()  # Lightning does not change the mode
        # In train mode on target images alone, its running statistics become those of the target.
        self.teacher = MeanTeacher(network, momentum=0.99, train_mode=True, dropout=True, buffers="keep")
        self.kc = ClassBalancedThreshold(CLASSES, portion=0.5)
        self.register_buffer("thresholds", torch.ones(CLASSES, dtype=torch.float64))  # 1 selects nothing
        self.iou = MulticlassJaccardIndex(CLASSES, ignore_index=255)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        (source_images, source_labels), (target_images, _) = batch["source"], batch["target"]
        logits = self.teacher(target_images)
        self.kc.update(logits)
        pseudo = select_reweighted(logits, self.thresholds)
        mixed = class_mix(target_images, pseudo.labels, source=(source_images, source_labels))
        # One batch for each domain, because a joint batch would mix their statistics.
        loss = F.cross_entropy(self.student(source_images), source_labels, ignore_index=255)
        return loss + cross_entropy(self.student(mixed.images), mixed.labels, normalize="all")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.teacher.update(self.student)  # once a step, also if batches are accumulated

    def on_train_epoch_end(self) -> None:
        self.thresholds.copy_(self.kc.compute())  # sums over ranks, so every rank must call it
        self.kc.reset()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # The checkpoint has only the counts of rank 0. At the end of an epoch all counts are 0.
        checkpoint["state_dict"] |= self.kc.state_dict(prefix="kc.")

    def on_train_epoch_start(self) -> None:
        # The seed depends only on the epoch and the rank, so a resumed run draws the same random numbers.
        torch.manual_seed(1000 * self.current_epoch + self.global_rank)

    def on_validation_epoch_start(self) -> None:
        self.teacher.model.eval()  # with the running statistics; Lightning restores the mode

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        self.iou.update(self.teacher(images).argmax(dim=1), labels)
        self.log("mIoU", self.iou)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.student.parameters(), lr=1e-3, weight_decay=1e-2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/integrations"))
    parser.add_argument("--smoke", action="store_true", help="train a few steps only, as a test")
    args = parser.parse_args()

    source, target, val = load(args.smoke, args.out)
    network = source_network(source, args.smoke, args.out)
    scores = [score(network, val)]
    update_bn(DataLoader(target, batch_size=50), network)
    scores.append(score(network, val))
    module = SelfTraining(network)
    trainer = L.Trainer(
        max_epochs=args.epochs or (2 if args.smoke else 4),
        accelerator=args.accelerator,
        devices=args.devices,
        callbacks=[ModelCheckpoint(args.out / "lightning", save_last=True)],
        num_sanity_val_steps=0,
        logger=False,
    )
    trainer.print(f"source only: mIoU {scores[0]:.1f}; BatchNorm re-estimated: mIoU {scores[1]:.1f}")
    loaders = {}
    for name, dataset in (("source", source), ("target", target)):
        # The sampler's order depends only on the epoch, not on torch's global generator.
        sampler = DistributedSampler(dataset, trainer.world_size, trainer.global_rank)
        loaders[name] = DataLoader(dataset, 4, sampler=sampler, drop_last=True, generator=torch.Generator())
    last = args.out / "lightning" / "last.ckpt"
    trainer.fit(module, loaders, DataLoader(val, batch_size=50), ckpt_path=last if args.resume else None)
    trainer.print(f"adapted: mIoU {100 * trainer.callback_metrics['mIoU']:.1f}")


if __name__ == "__main__":
    main()
