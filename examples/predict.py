"""Label a folder of images with a trained network: masks as PNG files with a palette, confidences, overlays.

The model is the folder of a run (or its ``model.pt``), a file of weights with ``--network``, ``hf:FOLDER`` of
transformers, or ``module:factory``. Network, classes, channels and tiles of a run are read from its folder. A mask
holds class numbers, or with ``--ids`` the label ids of the training data; ``classes.json`` in the output folder reads
either. The same command resumes an interrupted one: it predicts images without a complete mask, and images whose files
have changed. An output folder holds the masks of one folder of images. ``evaluate.py`` compares masks with true masks.

``python examples/predict.py runs/cbst my/images --out my/predictions --confidence --overlay``
"""

from __future__ import annotations

import argparse
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common.files import save_json, save_picture
from _prediction.images import Item, open_images, read
from _prediction.network import fingerprint, logits_of, open_network
from _prediction.options import add_options, check_out, complete, counted, writing
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from selftrain_seg.confidence import top_confidence
from selftrain_seg.datasets import LabelMap, SegmentationFolder
from selftrain_seg.visualize import overlay

ENDINGS = {"masks": ".png", "confidence": ".png", "overlays": ".jpg"}
# Options that do not change existing masks. Others must be the same when a command is resumed.
_MAY_CHANGE = ("images", "out", "confidence", "overlay", "names", "batch", "device", "workers", "threads", "model")

Stamps = dict[str, list[int]]  # name of an image -> size and time of the last change of its file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run, a file of weights, hf:FOLDER, or module:factory")
    parser.add_argument("images", type=Path, help="folder of images, which may have subfolders")
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="output folder (default: predictions)")
    parser.add_argument("--confidence", action="store_true", help="also write confidences: grey, 255 is certain")
    parser.add_argument("--overlay", action="store_true", help="also write pictures of the masks over the images")
    parser.add_argument("--ids", action="store_true", help="write label ids of the data instead of class numbers")
    add_options(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    classes = complete(args, args.model)
    values = values_of(classes, args.ids)
    if args.images.resolve() in [args.out.resolve(), *args.out.resolve().parents]:
        raise SystemExit(f"--out {args.out}: lies in the folder of images, so masks would be read as images")
    images = open_images(args.images, args)
    kinds = ["masks"] + ["confidence"] * args.confidence + ["overlays"] * args.overlay
    stamps = {name: stamp(images._image_path(name)) for name in images.names}
    with writing(args.out):
        settings, earlier = resume(args)
        missing = [
            index
            for index, name in enumerate(images.names)
            if earlier.get(name) != stamps[name]
            or not all(is_complete(args.out, kind, images, index) for kind in kinds)
        ]
    errors: list[str] = []
    if missing:
        check_out(args.out)
        net = open_network(args, args.model, classes)
        with writing(args.out):
            begin(args, classes, settings, earlier, stamps)
        with tqdm(total=len(images), initial=len(images) - len(missing), unit="image", disable=None) as bar:
            for batch in read(images, missing, args):
                errors += [item.error for item in batch if item.image is None]
                with writing(args.out):
                    write(net, [item for item in batch if item.image is not None], args, classes, values, kinds)
                bar.update(len(batch))
    predicted, kept = len(missing) - len(errors), len(images) - len(missing)
    print(f"{counted(len(images), 'image')}: {predicted} predicted, {kept} already complete")
    print(f"masks: {args.out / 'masks'}; their classes: {args.out / 'classes.json'}")
    if errors:
        raise SystemExit("\n".join([f"{counted(len(errors), 'image')} could not be read:", *errors[:20]]))


def write(net: Any, batch: list[Item], args: Namespace, classes: LabelMap, values: Tensor, kinds: list[str]) -> None:
    """Predict images of one size and write their files, the mask last."""
    if not batch:
        return
    images = torch.stack([item.image for item in batch])
    top = top_confidence(logits_of(net, images, args))
    labels, confidence = top.labels.cpu(), top.log_confidence.exp().nan_to_num(nan=0.0).cpu()
    for item, image, mask, certainty in zip(batch, images, labels, confidence, strict=True):
        if "overlays" in kinds:
            rgb = image[None, :3] if len(image) >= 3 else image[None, :1].expand(-1, 3, -1, -1)
            painted = overlay(rgb, mask[None], classes.palette, opacity=0.6)[0].movedim(0, -1)
            save_picture(Image.fromarray(painted.numpy()), path_of(args.out, "overlays", item.name), quality=90)
        if "confidence" in kinds:
            grey = (255 * certainty).round().byte().numpy()
            save_picture(Image.fromarray(grey), path_of(args.out, "confidence", item.name))
        save_picture(mask_image(values[mask], classes, values), path_of(args.out, "masks", item.name))


def values_of(classes: LabelMap, ids: bool) -> Tensor:
    """Return the value (C,) of each class in a mask: its number, or the first of its ids."""
    if not ids:
        return torch.arange(classes.num_classes)
    first: dict[int, int] = {}
    for label_id, number in classes.ids.items():
        first.setdefault(number, label_id)
    without = [classes.classes[number] for number in range(classes.num_classes) if not first.get(number, -1) >= 0]
    if without:
        raise SystemExit(f"--ids: {', '.join(without)} have no id, only colours")
    return torch.tensor([first[number] for number in range(classes.num_classes)])


def mask_image(mask: Tensor, classes: LabelMap, values: Tensor) -> Image.Image:
    """Return an image with a palette, or of 16 bits if a value exceeds 255."""
    if int(values.max()) > 255:
        return Image.fromarray(mask.numpy().astype(np.uint16))
    table = torch.zeros(256, 3, dtype=torch.uint8)
    table[values] = torch.tensor(classes.palette, dtype=torch.uint8)
    image = Image.fromarray(mask.byte().numpy())
    image.putpalette(table.numpy().tobytes())
    return image


def path_of(out: Path, kind: str, name: str) -> Path:
    """Return the path of an image's mask, confidence or overlay."""
    return out / kind / f"{name}{ENDINGS[kind]}"  # not with_suffix: names may have dots


def is_complete(out: Path, kind: str, images: SegmentationFolder, index: int) -> bool:
    """Return whether an image's file exists, can be decoded, and has the size of the image."""
    path = path_of(out, kind, images.names[index])
    if not path.is_file():
        return False
    try:
        with Image.open(path) as picture:
            picture.verify()  # also checks the parts of a PNG that decoding skips
        with Image.open(path) as picture:
            picture.load()
            size = picture.size
    except Exception:  # Pillow raises many kinds for damaged files
        return False
    try:
        with Image.open(images._image_path(images.names[index])) as image:
            return size in (image.size, image.size[::-1])  # EXIF may rotate it
    except Exception:  # a format that only other packages read
        return True


def stamp(path: Path) -> list[int]:
    """Return the size of a file and the time of its last change, in ns; empty if it cannot be read."""
    try:
        status = path.stat()
    except OSError:  # reading the image reports the error
        return []
    return [status.st_size, status.st_mtime_ns]


def resume(args: Namespace) -> tuple[dict[str, Any], Stamps]:
    """Return the settings to store, and the stamps of images of an earlier command; refuse one with other settings."""
    settings = {name: value for name, value in vars(args).items() if name not in _MAY_CHANGE}
    settings = json.loads(json.dumps({**settings, "weights": fingerprint(args.model)}, default=str))
    folder, stamps = str(args.images.resolve()), {}
    path = args.out / "predict.json"
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            earlier, stamps = found["images"], dict(found["stamps"])
        except (ValueError, TypeError, KeyError):
            raise SystemExit(f"{path}: damaged, or written by another version: choose another --out") from None
        if earlier != folder:
            raise SystemExit(f"{args.out} holds masks of the images in {earlier}, not {folder}: choose another --out")
        changed = [name for name in settings if found.get(name) != settings[name]]
        if changed:
            what = "; ".join(f"{name} {found.get(name)}, now {settings[name]}" for name in changed)
            raise SystemExit(f"{args.out} was made with {what}: choose another --out, or remove the folder")
    elif (args.out / "masks").exists():
        raise SystemExit(f"{args.out}: its masks were not written by predict.py: choose another --out")
    return {**settings, "images": folder}, stamps


def begin(args: Namespace, classes: LabelMap, settings: dict[str, Any], earlier: Stamps, stamps: Stamps) -> None:
    """Store the settings, stamps and classes; remove incomplete files and those of images that have changed."""
    args.out.mkdir(parents=True, exist_ok=True)
    for name, now in stamps.items():
        if earlier.get(name) != now:
            for kind in ENDINGS:  # before the new stamp is stored, as the process may be killed at any moment
                path_of(args.out, kind, name).unlink(missing_ok=True)
    for pattern in ("predict.json.*.tmp", *(f"{kind}/**/*.tmp" for kind in ENDINGS)):
        for incomplete in args.out.glob(pattern):
            incomplete.unlink()
    numbers = {number: number for number in range(classes.num_classes)}
    (classes if args.ids else LabelMap(numbers, classes.classes, classes.palette)).save(args.out / "classes.json")
    save_json({**settings, "stamps": dict(sorted({**earlier, **stamps}.items()))}, args.out / "predict.json")


if __name__ == "__main__":
    main()
