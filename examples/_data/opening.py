"""Open the data sets of ``--data``: source, target and validation images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from _common.advice import in_options, of_names
from _common.resuming import check_data
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF

from _data.checks import check_values, digests, suggest_white
from _data.held_out import hold_out, holds_out
from _data.streets import draw_held_out, draw_streets
from selftrain_seg import IGNORE_INDEX
from selftrain_seg.datasets import (
    BDD100K,
    GTA5,
    SYNTHIA,
    Cityscapes,
    LabelMap,
    SegmentationFolder,
    SyntheticStreets,
    VOCSegmentation,
)

if TYPE_CHECKING:
    from _common.run import Run
    from _common.settings import Settings


class Data(NamedTuple):
    """The data sets of a run.

    Attributes:
        source: labelled source images; None for a trainer that does not use them.
        target: target images with names, without labels.
        target_with: makes target images with labels: those of a function of the name, or for True those in files.
        val: labelled target images for evaluation, with labels in the size of the files; None if there are none.
        label_map: names and colours of the classes.
        subsets: heading -> classes whose mean IoU is reported; the first is the mIoU.
        has_truth: whether files have labels of the target images. They are used to measure precision.
        held_out: labelled source images that are not trained on, for ``--check`` and ``--reestimate-bn auto``.
    """

    source: Any
    target: Any
    target_with: Callable[[Any], Dataset[Any]]
    val: Any
    label_map: LabelMap
    subsets: dict[str, tuple[int, ...]]
    has_truth: bool = True
    held_out: Any = None


class Part(Dataset[Any]):
    """A subset of a data set, resized if ``resize`` is given.

    Args:
        dataset: its items are (image, labels) or (image, name).
        places: indices of the images; None for all.
        resize: height and width of images, and of labels unless ``whole_labels``.
        whole_labels: whether labels keep their size.
        labels: replaces names by labels in the size of the resized image; called with the name.

    Raises:
        ValueError: a floating-point image has values outside [0, 1]; raised when it is read.
    """

    def __init__(
        self,
        dataset: Any,
        places: Sequence[int] | None = None,
        *,
        resize: Sequence[int] | None = None,
        whole_labels: bool = False,
        labels: Callable[[str], Tensor] | None = None,
    ) -> None:
        self.dataset, self.places = dataset, list(range(len(dataset)) if places is None else places)
        self.names = tuple(dataset.names[place] for place in self.places)
        self.resize, self.whole_labels, self.labels = resize, whole_labels, labels

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, other = self.dataset[self.places[index]]
        check_values(image, self.dataset._image_path(self.names[index]))
        if self.resize is not None:
            image = TF.resize(image, list(self.resize), antialias=True)
            if isinstance(other, Tensor) and not self.whole_labels:
                other = TF.resize(tv_tensors.Mask(other), list(self.resize))
        return image, other if self.labels is None else self.labels(other)

    def only(self, indices: Sequence[int]) -> Part:
        """Return the subset of these indices."""
        places = [self.places[index] for index in indices]
        return Part(self.dataset, places, resize=self.resize, whole_labels=self.whole_labels, labels=self.labels)

    def masks(self) -> Dataset[Tensor]:
        """Return the labels alone, without decoding images."""
        return _Masks(self)


class _Masks(Dataset[Tensor]):
    def __init__(self, part: Part) -> None:
        self.part, self.masks = part, part.dataset.masks()

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> Tensor:
        labels = self.masks[self.part.places[index]]
        if self.part.resize is None or self.part.whole_labels:
            return labels
        return TF.resize(tv_tensors.Mask(labels), list(self.part.resize)).as_subclass(Tensor)


def open_data(settings: Settings, run: Run, *, source_free: bool = False) -> Data:
    """Open the data sets of ``--data``, check them and print what they hold.

    Sets ``settings.crop`` if it is None. Every trainer crops images, so they may differ in size.

    Args:
        settings: of the trainer.
        run: its folder stores the classes and digests of the data.
        source_free: whether the trainer uses no source images.
    """
    try:
        data = hold_out(_opened(settings, run, source_free), run)
        first = data.target[0][0]
        sizes = [first.shape[-2:]] if data.source is None else [first.shape[-2:], data.source[0][0].shape[-2:]]
    except (OSError, ValueError) as error:
        raise SystemExit(f"--data {settings.data}: {in_options(error)}") from None
    if settings.crop is None:
        most = [settings.largest_crop, settings.tile or settings.largest_crop]
        settings.crop = [min(sides) for sides in zip(*sizes, *most, strict=True)]
        if getattr(settings, "mine", False):  # a crop of the whole image could not be placed
            settings.crop = [min(crop, 3 * side // 4) for crop, side in zip(settings.crop, sizes[0], strict=True)]
    parts = {"source": data.source, "held-out source": data.held_out, "target": data.target, "val": data.val}
    counts = ", ".join(f"{len(part)} {name}" for name, part in parts.items() if part is not None)
    channels, height, width = first.shape
    run.say(
        f"{settings.data}: {counts} images; first target image {height} x {width}, {channels} channels; "
        f"crops {settings.crop[0]} x {settings.crop[1]}"
    )
    if any(crop > max(sides) for crop, sides in zip(settings.crop, zip(*sizes, strict=True), strict=True)):
        run.say("the crops are larger than the first images: they are padded, and the padding is ignored")
    run.say(f"{settings.network}: {settings.optimizer}, learning rate {settings.lr:g}, {batchnorm_line(settings)}")
    if data.val is None:
        run.say(f"no validation masks, so no mIoU{'' if data.has_truth else '; no target masks, so no precision'}")
    if settings.data != "streets":  # the settings and the code determine the synthetic benchmark
        check_data(run, digests(parts, settings))
    suggest_white(data, settings, run)
    if run.main:
        data.label_map.save(run.out / "classes.json")  # for predict.py
    return data


def batchnorm_line(settings: Settings) -> str:
    """Describe ``--frozen-bn`` and ``--reestimate-bn``."""
    share = settings.reestimate_bn
    if settings.frozen_bn:
        return "BatchNorm frozen"
    if share in (0, 1):
        return f"BatchNorm trained{', its statistics re-estimated on target images' if share else ''}"
    return f"BatchNorm trained, a share ({share}) of target statistics mixed in"


def _opened(settings: Settings, run: Run, source_free: bool) -> Data:
    if settings.data == "streets":
        return _streets(settings, run)
    if settings.data == "folders":
        return _folders(settings, source_free)
    if settings.root is None:
        raise SystemExit(f"--data {settings.data}: give the folder of the data with --root")
    if settings.data == "voc":
        return _voc(settings)
    if settings.source_root is None and not source_free:
        raise SystemExit(f"--data {settings.data}: give the folder of the source images with --source-root")
    outputs = settings.outputs if settings.data == "synthia" else 19
    label_map = LabelMap.cityscapes(outputs)
    everything = {"mIoU": tuple(range(19))}
    if settings.data == "synthia":
        everything = {"mIoU-16": label_map.synthia_subset(16), "mIoU-13": label_map.synthia_subset(13)}
    source: Any = None
    if not source_free and (settings.source_root / "leftImg8bit").is_dir():
        source = Cityscapes(settings.source_root, label_map=label_map)
    elif not source_free and settings.data == "synthia":
        source = SYNTHIA(settings.source_root, label_map=LabelMap.synthia(outputs))
    elif not source_free:
        source = GTA5(settings.source_root)
    if settings.data == "bdd100k":
        return _adaptation(settings, source, functools.partial(BDD100K, settings.root), label_map, everything)
    known = label_map
    if settings.data == "synthia" and outputs == 19 and settings.missing_classes == "ignored":
        known = label_map.ignoring("terrain", "truck", "train")
    open_target = functools.partial(Cityscapes, settings.root, label_map=known)
    return _adaptation(settings, source, open_target, label_map, everything)


def _adaptation(
    settings: Settings, source: Any, open_target: Any, label_map: LabelMap, subsets: dict[str, tuple[int, ...]]
) -> Data:
    def target(labels: Any) -> Part:
        given = labels if callable(labels) else None
        return Part(open_target(split="train", labels=labels is True), resize=settings.resize, labels=given)

    val = Part(open_target(split="val"), resize=settings.resize, whole_labels=True)
    return Data(source and Part(source, resize=settings.resize), target(False), target, val, label_map, subsets)


def _streets(settings: Settings, run: Run) -> Data:
    """Open the synthetic benchmark; draw it at first use."""
    root = draw_streets(settings, run)
    label_map = LabelMap.streets()
    subsets = {"mIoU": tuple(range(label_map.num_classes)), "rare": SyntheticStreets.rare}
    open_target = functools.partial(Cityscapes, root / "target", label_map=label_map)
    data = _adaptation(settings, GTA5(root / "source", label_map=label_map), open_target, label_map, subsets)
    if not holds_out(settings):
        return data
    held_out = GTA5(draw_held_out(root, settings, run), label_map=label_map)
    return data._replace(held_out=Part(held_out, resize=settings.resize))


def _voc(settings: Settings) -> Data:
    """Open VOC for semi-supervised training: the source is the labelled part of the training images."""
    everything = VOCSegmentation(settings.root, "train_aug")
    labelled, others = everything.draw_labelled(settings.labelled, seed=settings.seed)

    def target(labels: Any) -> Part:
        dataset = VOCSegmentation(settings.root, "train_aug", labels=labels is True)
        return Part(dataset, others, resize=settings.resize, labels=labels if callable(labels) else None)

    val = Part(VOCSegmentation(settings.root, "val"), resize=settings.resize, whole_labels=True)
    subsets = {"mIoU": tuple(range(everything.num_classes))}
    source = Part(everything, labelled, resize=settings.resize)
    return Data(source, target(False), target, val, everything.label_map, subsets)


def _folders(settings: Settings, source_free: bool) -> Data:
    """Open the user's own images and masks."""
    needed = ["target_images", "classes", *(() if source_free else ("source_images", "source_masks"))]
    missing = [f"--{name.replace('_', '-')}" for name in needed if getattr(settings, name) is None]
    if missing:
        raise SystemExit(f"--data folders: {', '.join(missing)} missing")
    if (settings.val_images is None) != (settings.val_masks is None):
        raise SystemExit("--data folders: --val-images and --val-masks go together")
    label_map = LabelMap.load(settings.classes)
    if label_map.ignore_index != IGNORE_INDEX or label_map.num_classes > IGNORE_INDEX:
        raise ValueError(
            f"{settings.classes}: expected at most {IGNORE_INDEX} classes and ignore index {IGNORE_INDEX}, "
            f"got {label_map.num_classes} and {label_map.ignore_index}"
        )
    if label_map.num_classes == 1:
        raise ValueError(
            f'{settings.classes}: 1 class: name the background too, such as {{"0": "background", "1": "cell"}}'
        )
    reading = {"label_map": label_map, "channels": settings.channels, "white": settings.white}
    masked = {"mask_suffix": settings.mask_suffix, "read_masks": settings.read_masks}
    masked["unpaired"] = "leave out" if settings.leave_out_unpaired else "error"

    def part(dataset: Any, most: int, **options: Any) -> Part:
        ending = settings.mask_suffix.rpartition(".")[0] or settings.mask_suffix
        images = [place for place, name in enumerate(dataset.names) if not (ending and name.endswith(ending))]
        return Part(dataset, images[:most] if settings.smoke else images, resize=settings.resize, **options)

    def folder(domain: str, with_masks: bool) -> SegmentationFolder:
        images, masks, names = (getattr(settings, f"{domain}_{kind}") for kind in ("images", "masks", "names"))
        given = {"masks": masks, **masked} if with_masks else {}
        try:
            return SegmentationFolder(images, names=names, **given, **reading)
        except (OSError, ValueError) as error:
            raise ValueError(in_options(error, of_names(domain))) from None

    def target(labels: Any) -> Part:
        if labels is True and settings.target_masks is None:
            raise ValueError("labels of the target images are needed: give their folder with --target-masks")
        return part(folder("target", labels is True), 12, labels=labels if callable(labels) else None)

    source = val = None
    if not source_free:
        source = part(folder("source", True), 16)
    if settings.val_images is not None:
        val = part(folder("val", True), 8, whole_labels=True)
    if settings.target_masks is not None:
        target(True)  # fails now, not after the first round
    subsets = {"mIoU": tuple(range(label_map.num_classes))}
    return Data(source, target(False), target, val, label_map, subsets, settings.target_masks is not None)
