"""The pairs of data sets to adapt between, read from their folders."""

from __future__ import annotations

import functools
import shutil
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision import tv_tensors
from torchvision.transforms import v2

from _common.run import Run
from selftrain_seg import IGNORE_INDEX
from selftrain_seg.datasets import GTA5, SYNTHIA, Cityscapes, LabelMap, SyntheticStreets, VOCSegmentation


class Data(NamedTuple):
    """Two domains: labelled images of one, and of the other images only.

    Attributes:
        source: labelled images; None for a trainer that does without.
        target: names and images without labels; ``target_with(labels)`` gives them labels, by a function of the name.
        val: labelled images of the target domain.
        label_map: classes, names and colours.
        subsets: heading -> classes that a mean IoU is taken over.
    """

    source: Any
    target: Any
    target_with: Callable[[Any], Dataset[Any]]
    val: Dataset[Any]
    label_map: LabelMap
    subsets: dict[str, tuple[int, ...]]


def open_data(args: Namespace, run: Run, *, source_free: bool = False) -> Data:
    """Open the data sets that ``--data`` names, those of GTA5 or SYNTHIA only if they are needed."""
    if args.data == "streets":
        return _streets(args, run)
    if args.root is None:
        raise SystemExit(f"--data {args.data}: say where the data is with --root")
    if args.data == "voc":
        return _voc(args)
    if args.source_root is None and not source_free:
        raise SystemExit(f"--data {args.data}: say where the source images are with --source-root")
    label_map = LabelMap.cityscapes()
    everything = {"mIoU": tuple(range(19))}
    source = None
    if not source_free:
        source = GTA5(args.source_root) if args.data == "gta5" else SYNTHIA(args.source_root)
    if args.data == "synthia":
        everything = {"mIoU-16": label_map.synthia_subset(16), "mIoU-13": label_map.synthia_subset(13)}
    return _adaptation(source, args.root, label_map, everything)


def _adaptation(source: Any, root: Path, label_map: LabelMap, subsets: dict[str, tuple[int, ...]]) -> Data:
    def target(labels: Any) -> Cityscapes:
        return Cityscapes(root, "train", labels=labels, label_map=label_map)

    val = Cityscapes(root, "val", label_map=label_map)
    return Data(source, target(False), target, val, label_map, subsets)


def _streets(args: Namespace, run: Run) -> Data:
    """The embedded benchmark, drawn at first use and written as GTA5 and Cityscapes folders."""
    source, target, val = args.images
    root = args.root or Path("runs") / "streets" / f"seed{args.seed}-{source}-{target}-{val}"
    if run.main and not (root / "complete").exists():
        begun = root / "incomplete"  # only what was drawn here is ever removed
        if root.exists() and not begun.exists() and any(root.iterdir()):
            raise SystemExit(f"--root {root}: holds other files than the embedded benchmark's; real data needs --data")
        root.mkdir(parents=True, exist_ok=True)
        begun.touch()
        for part in ("source", "target"):
            shutil.rmtree(root / part, ignore_errors=True)
        run.say(f"drawing the embedded benchmark into {root}")
        seed = {"seed": args.seed}
        SyntheticStreets("source", "train", length=source, **seed).export(root / "source", "gta5", progress=True)
        SyntheticStreets("target", "train", length=target, **seed).export(root / "target", progress=True)
        SyntheticStreets("target", "val", length=val, **seed).export(root / "target", progress=True)
        begun.rename(root / "complete")
    if run.world > 1:
        torch.distributed.barrier()
    label_map = LabelMap.streets()
    subsets = {"mIoU": tuple(range(label_map.num_classes)), "rare": SyntheticStreets.rare}
    return _adaptation(GTA5(root / "source", label_map=label_map), root / "target", label_map, subsets)


def _voc(args: Namespace) -> Data:
    """Semi-supervised: a part of VOC's training images is labelled, all others are the target."""
    everything = VOCSegmentation(args.root, "train_aug")
    labelled, others = everything.draw_labelled(args.labelled, seed=args.seed)
    names = [everything.names[index] for index in others]

    def target(labels: Any) -> Any:
        subset = Subset(VOCSegmentation(args.root, "train_aug", labels=labels), others)
        subset.names = names  # type: ignore[attr-defined]
        return subset

    val = VOCSegmentation(args.root, "val")
    subsets = {"mIoU": tuple(range(everything.num_classes))}
    return Data(Subset(everything, labelled), target(False), target, val, everything.label_map, subsets)


def training_transform(size: Sequence[int] | None, *, crop: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Augment (image, labels, further maps) or (image, name): a crop, mirroring, colours. Images stay uint8.

    Where a crop goes beyond the image, labels are ignored and further maps 0.

    Args:
        size: height and width of the crop; None for whole images.
        crop: in place of a crop anywhere: ``selftrain_seg.mining.SmallClassCrop``, say.
    """
    if crop is None and size is not None:
        fill = {tv_tensors.Image: 0, tv_tensors.Mask: IGNORE_INDEX}
        crop = v2.RandomCrop(tuple(size), pad_if_needed=True, fill=fill)
    flip, jitter = v2.RandomHorizontalFlip(), v2.ColorJitter(0.2, 0.2, 0.2, 0.03)
    return functools.partial(_augment, flip if crop is None else v2.Compose([crop, flip]), jitter)


def _augment(
    move: Callable[..., Any], recolour: Callable[..., Any], image: tv_tensors.Image, labels: Any, *maps: Tensor
) -> tuple[Any, ...]:
    if isinstance(labels, Tensor):
        labels = tv_tensors.Mask(labels)
    # Maps move as images do: a crop finds its place in the only mask, and fills the others with 0.
    image, labels, *moved = move(image, labels, *(tv_tensors.Image(part) for part in maps))
    moved = [new.reshape(*old.shape[:-2], *new.shape[-2:]) for new, old in zip(moved, maps, strict=True)]
    parts = (recolour(image), labels, *moved)
    return tuple(part.as_subclass(Tensor) if isinstance(part, Tensor) else part for part in parts)
