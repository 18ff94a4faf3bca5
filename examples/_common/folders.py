"""The pairs of data sets to adapt between, read from their folders."""

from __future__ import annotations

import functools
import hashlib
import shutil
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import ExifTags, Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

import selftrain_seg
from _common.data import digest_of, save_json
from _common.run import Run
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

_LOOKED_AT = 50  # source masks of the known data sets; of a user's own, all are
_BRIGHTEST_OF = 20  # images that are read to ask about --white


class Data(NamedTuple):
    """Two domains: labelled images of one, and of the other images only.

    Attributes:
        source: labelled images; None for a trainer that does without.
        target: names and images without labels; ``target_with(labels)`` gives them labels, by a function of the name,
            or True for those of files.
        val: labelled images of the target domain, the labels in the size of the files; None if there are none.
        label_map: classes, names and colours.
        subsets: heading -> classes that a mean IoU is taken over.
        has_truth: whether the target images have labels in files, too. They serve to measure precision only.
    """

    source: Any
    target: Any
    target_with: Callable[[Any], Dataset[Any]]
    val: Any
    label_map: LabelMap
    subsets: dict[str, tuple[int, ...]]
    has_truth: bool = True


class Part(Dataset[Any]):
    """Some images of a data set, all of one size if asked for.

    Args:
        dataset: its items are (image, labels) or (image, name).
        places: numbers of the images; None for all.
        resize: height and width that images get, and labels unless ``whole_labels``.
        whole_labels: labels stay as they are.
        labels: in place of names, labels in the size of the resized image, by a function of the name.
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
        if self.resize is not None:
            image = TF.resize(image, list(self.resize), antialias=True)
            if isinstance(other, Tensor) and not self.whole_labels:
                other = TF.resize(tv_tensors.Mask(other), list(self.resize))
        return image, other if self.labels is None else self.labels(other)

    def masks(self) -> Dataset[Tensor]:
        """The labels alone; nothing decodes the images."""
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


def open_data(args: Namespace, run: Run, *, source_free: bool = False) -> Data:
    """Open the data sets that ``--data`` names, the source only if it is needed, and say what is in them.

    Sets ``--crop`` where it was not given: all trainers cut images so that any sizes go together.
    """
    try:
        data = _opened(args, run, source_free)
        first = data.target[0][0]
        sizes = [first.shape[-2:]] if data.source is None else [first.shape[-2:], data.source[0][0].shape[-2:]]
    except (OSError, ValueError) as error:
        raise SystemExit(f"--data {args.data}: {error}") from None
    _check_values(first, data.target.names[0])
    if args.crop is None:
        most = [args.largest_crop, args.tile or args.largest_crop]
        args.crop = [min(sides) for sides in zip(*sizes, *most, strict=True)]
        if getattr(args, "mine", False):  # in a crop of the whole image there is nothing to look for
            args.crop = [min(crop, 3 * side // 4) for crop, side in zip(args.crop, sizes[0], strict=True)]
    parts = {"source": data.source, "target": data.target, "val": data.val}
    counts = ", ".join(f"{len(part)} {name}" for name, part in parts.items() if part is not None)
    channels, height, width = first.shape
    run.say(
        f"{args.data}: {counts} images; the first of the target is {height} x {width}, {channels} channels; crops of "
        f"{args.crop[0]} x {args.crop[1]}"
    )
    run.say(
        f"{args.network}: {args.optimizer}, learning rate {args.lr:g}, "
        f"BatchNorm {'frozen' if args.frozen_bn else 'learns'}"
        f"{', its statistics re-estimated' if args.reestimate_bn else ''}"
    )
    if data.val is None:
        run.say(f"no validation masks, so no mIoU{'' if data.has_truth else '; no target masks, so no precision'}")
    if args.data != "streets":  # what is drawn is known by the arguments and the code
        run.check_data(_digests(parts, args))
    _hint_of_white(data, args, run)
    if run.main:
        data.label_map.save(run.out / "classes.json")  # for predict.py
    return data


def _opened(args: Namespace, run: Run, source_free: bool) -> Data:
    if args.data == "streets":
        return _streets(args, run)
    if args.data == "folders":
        return _folders(args, source_free)
    if args.root is None:
        raise SystemExit(f"--data {args.data}: say where the data is with --root")
    if args.data == "voc":
        return _voc(args)
    if args.source_root is None and not source_free:
        raise SystemExit(f"--data {args.data}: say where the source images are with --source-root")
    label_map = LabelMap.cityscapes()
    everything = {"mIoU": tuple(range(19))}
    if args.data == "synthia":
        everything = {"mIoU-16": label_map.synthia_subset(16), "mIoU-13": label_map.synthia_subset(13)}
    source: Any = None
    if not source_free and (args.source_root / "leftImg8bit").is_dir():
        source = Cityscapes(args.source_root)
    elif not source_free:
        source = SYNTHIA(args.source_root) if args.data == "synthia" else GTA5(args.source_root)
    if args.data == "bdd100k":
        return _adaptation(args, source, functools.partial(BDD100K, args.root), label_map, everything)
    open_target = functools.partial(Cityscapes, args.root, label_map=label_map)
    return _adaptation(args, source, open_target, label_map, everything)


def _adaptation(
    args: Namespace, source: Any, open_target: Any, label_map: LabelMap, subsets: dict[str, tuple[int, ...]]
) -> Data:
    def target(labels: Any) -> Part:
        given = labels if callable(labels) else None
        return Part(open_target(split="train", labels=labels is True), resize=args.resize, labels=given)

    val = Part(open_target(split="val"), resize=args.resize, whole_labels=True)
    return Data(source and Part(source, resize=args.resize), target(False), target, val, label_map, subsets)


def _streets(args: Namespace, run: Run) -> Data:
    """The embedded benchmark, drawn at first use and written as GTA5 and Cityscapes folders."""
    source, target, val = args.images
    code = digest_of(sorted((Path(selftrain_seg.__file__).parent / "datasets").glob("*streets*.py")))
    root = args.root or Path("runs") / "streets" / f"seed{args.seed}-{source}-{target}-{val}-{code}"
    drawn = (root / "complete").read_text(encoding="utf-8") if (root / "complete").exists() else None
    if drawn not in (None, code):
        raise SystemExit(f"--root {root}: drawn by other code than this version's; remove it, or choose another")
    if run.main and drawn is None:
        begun = root / "incomplete"  # only what was drawn here is ever removed
        if root.exists() and not begun.exists() and any(root.iterdir()):
            raise SystemExit(f"--root {root}: holds other files than the embedded benchmark's; real data needs --data")
        root.mkdir(parents=True, exist_ok=True)
        begun.write_text(code, encoding="utf-8")
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
    open_target = functools.partial(Cityscapes, root / "target", label_map=label_map)
    return _adaptation(args, GTA5(root / "source", label_map=label_map), open_target, label_map, subsets)


def _voc(args: Namespace) -> Data:
    """Semi-supervised: a part of VOC's training images is labelled, all others are the target."""
    everything = VOCSegmentation(args.root, "train_aug")
    labelled, others = everything.draw_labelled(args.labelled, seed=args.seed)

    def target(labels: Any) -> Part:
        dataset = VOCSegmentation(args.root, "train_aug", labels=labels is True)
        return Part(dataset, others, resize=args.resize, labels=labels if callable(labels) else None)

    val = Part(VOCSegmentation(args.root, "val"), resize=args.resize, whole_labels=True)
    subsets = {"mIoU": tuple(range(everything.num_classes))}
    source = Part(everything, labelled, resize=args.resize)
    return Data(source, target(False), target, val, everything.label_map, subsets)


def _folders(args: Namespace, source_free: bool) -> Data:
    """A user's own images and masks."""
    needed = ["target_images", "classes", *(() if source_free else ("source_images", "source_masks"))]
    missing = [f"--{name.replace('_', '-')}" for name in needed if getattr(args, name) is None]
    if missing:
        raise SystemExit(f"--data folders: {', '.join(missing)} missing")
    if (args.val_images is None) != (args.val_masks is None):
        raise SystemExit("--data folders: --val-images and --val-masks go together")
    label_map = LabelMap.load(args.classes)
    if label_map.ignore_index != IGNORE_INDEX or label_map.num_classes > IGNORE_INDEX:
        raise ValueError(
            f"{args.classes}: expected at most {IGNORE_INDEX} classes, with {IGNORE_INDEX} for what is ignored, got "
            f"{label_map.num_classes} with {label_map.ignore_index}"
        )
    if label_map.num_classes == 1:
        raise ValueError(
            f'{args.classes}: 1 class: name the background too, such as {{"0": "background", "1": "cell"}}'
        )
    settings = {"label_map": label_map, "channels": args.channels, "white": args.white}
    suffix = {"mask_suffix": args.mask_suffix}

    def part(dataset: Any, most: int, **options: Any) -> Part:
        ending = args.mask_suffix.rpartition(".")[0] or args.mask_suffix
        images = [place for place, name in enumerate(dataset.names) if not (ending and name.endswith(ending))]
        return Part(dataset, images[:most] if args.smoke else images, resize=args.resize, **options)

    def target(labels: Any) -> Part:
        if labels is True and args.target_masks is None:
            raise ValueError("labels of the target images are needed: say where they are with --target-masks")
        masks = {"masks": args.target_masks, **suffix} if labels is True else {}
        dataset = SegmentationFolder(args.target_images, names=args.target_names, **masks, **settings)
        return part(dataset, 12, labels=labels if callable(labels) else None)

    source = val = None
    if not source_free:
        masks = {"masks": args.source_masks, "names": args.source_names, **suffix}
        source = part(SegmentationFolder(args.source_images, **masks, **settings), 16)
    if args.val_images is not None:
        masks = {"masks": args.val_masks, "names": args.val_names, **suffix}
        val = part(SegmentationFolder(args.val_images, **masks, **settings), 8, whole_labels=True)
    if args.target_masks is not None:
        target(True)  # or its error now, not after the first round
    subsets = {"mIoU": tuple(range(label_map.num_classes))}
    return Data(source, target(False), target, val, label_map, subsets, args.target_masks is not None)


def _check_values(image: Tensor, name: str) -> None:
    if image.is_floating_point() and not 0 <= float(image.min()) <= float(image.max()) <= 1:
        raise SystemExit(
            f"{name}: expected 8 or 16 bits, or floating point from 0 to 1, got {float(image.min()):g} to "
            f"{float(image.max()):g}; --white says which value is white"
        )


def _digests(parts: dict[str, Any], args: Namespace) -> dict[str, str]:
    """Digests of the names and sizes of each part's images, and masks where it has them; of the file of classes."""
    made = {name: _digest(part) for name, part in parts.items() if part is not None}
    if args.classes is not None:
        made["classes"] = hashlib.sha256(args.classes.read_bytes()).hexdigest()
    return made


def _digest(part: Part) -> str:
    digest, dataset = hashlib.sha256(), part.dataset
    for name in part.names:
        files = [dataset._image_path(name), *([dataset._label_path(name)] if dataset.labels is True else [])]
        digest.update(repr((name, [path.stat().st_size for path in files])).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _hint_of_white(data: Data, args: Namespace, run: Run) -> None:
    """Ask about ``--white`` where images of 16 bits are all but black."""
    if args.data != "folders" or args.white is not None or not run.main:
        return
    for heading, part in (("source", data.source), ("target", data.target)):
        highest = 0.0
        for name in () if part is None else part.names[:_BRIGHTEST_OF]:
            try:
                picture = part.dataset._read_picture(name)
            except (OSError, ValueError):  # is named when it is needed
                continue
            highest = max(highest, float(picture.image.max()) if picture.bits == 16 else 1.0)
            if highest >= 1 / 8:
                break
        if 0 < highest < 1 / 8:
            brightest = round(65535 * highest)
            run.say(f"{heading} images of 16 bits: brightest value {brightest} of 65535: --white {brightest}?")


def _check_headers(part: Part) -> None:
    """Compare the sizes in the headers of images and masks, where Pillow knows them."""
    for name in part.names:
        image, mask = part.dataset._image_path(name), part.dataset._label_path(name)
        sizes = [_header_size(path) for path in (image, mask)]
        if None not in sizes and sizes[0] != sizes[1]:
            (height, width), (mask_height, mask_width) = sizes
            raise ValueError(f"{mask} is {mask_height} x {mask_width}, but its image {image} is {height} x {width}")


def _header_size(path: Path) -> tuple[int, int] | None:
    """Height and width as the image is shown; None where only decoding it would tell."""
    try:
        with Image.open(path) as file:
            width, height = file.size
            turned = file.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return (width, height) if turned else (height, width)


def look_at_masks(data: Data, run: Run) -> None:
    """Say how much of the source masks has a class; stop if it is next to nothing, or if ids mean something else.

    Of a user's own folders all masks are read, so that what is wrong with one is not found hours later. It takes its
    time, so trainers call it when the network is built.
    """
    if data.source is None:
        return
    args = run.args
    kept = run.out / "source-masks.json"  # of an attempt with the same arguments
    if run.main and not kept.exists():
        most = _LOOKED_AT if args.data != "folders" or args.smoke else None
        try:
            if args.data == "folders":
                _check_headers(data.source)
            found = data.source.dataset.verify(progress=True, images=False, most=most)
        except (OSError, ValueError) as error:
            raise SystemExit(f"--data {args.data}, source masks: {error}") from None
        absent = [name for name, count in zip(found.classes, found.pixels, strict=True) if count == 0]
        run.say(
            f"{found.samples} source masks: {100 * (found.labelled or 0):.1f} % of the pixels have a class"
            f"{'; none is ' + ', '.join(absent) if absent else ''}"
        )
        save_json({"labelled": found.labelled, "pixels": dict(zip(found.classes, found.pixels, strict=True))}, kept)
    if run.world > 1:
        torch.distributed.barrier()


def training_transform(size: Sequence[int], *, crop: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Augment (image, labels, further maps) or (image, name): a crop, mirroring, colours. Values stay in their range.

    Where a crop goes beyond the image, labels are ignored and further maps 0.

    Args:
        size: height and width of the crop.
        crop: in place of a crop anywhere: ``selftrain_seg.mining.SmallClassCrop``, say.
    """
    if crop is None:
        fill = {tv_tensors.Image: 0, tv_tensors.Mask: IGNORE_INDEX}
        crop = v2.RandomCrop(tuple(size), pad_if_needed=True, fill=fill)
    jitter = v2.ColorJitter(0.2, 0.2, 0.2, 0.03)
    return functools.partial(_augment, v2.Compose([crop, v2.RandomHorizontalFlip()]), jitter)


def _augment(
    move: Callable[..., Any], recolour: Callable[..., Any], image: tv_tensors.Image, labels: Any, *maps: Tensor
) -> tuple[Any, ...]:
    if isinstance(labels, Tensor):
        labels = tv_tensors.Mask(labels)
    # Maps move as images do: a crop finds its place in the only mask, and fills the others with 0.
    image, labels, *moved = move(image, labels, *(tv_tensors.Image(part) for part in maps))
    moved = [new.reshape(*old.shape[:-2], *new.shape[-2:]) for new, old in zip(moved, maps, strict=True)]
    parts = (recolour(image) if image.shape[0] in (1, 3) else relit(image), labels, *moved)
    return tuple(part.as_subclass(Tensor) if isinstance(part, Tensor) else part for part in parts)


def relit(image: Tensor, strength: float = 0.2) -> Tensor:
    """Change brightness and contrast of images (..., C, H, W) whose channels are no colours, of each by its own."""
    top = 1.0 if image.is_floating_point() else 255.0
    factors = 1 + strength * (2 * torch.rand(2, *image.shape[:-3], 1, 1, 1) - 1)
    brightness, contrast = factors.to(image.device)
    floats = image.float()
    mean = floats.mean(dim=(-3, -2, -1), keepdim=True)
    made = ((floats - mean) * contrast + mean * brightness).clamp(0, top)
    return made.to(image.dtype) if image.is_floating_point() else made.round().to(image.dtype)
