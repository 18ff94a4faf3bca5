"""Label a folder of images with a trained network: masks as PNG with a palette, confidences, overlays.

The model is the folder of a run (or its ``model.pt``), a file of weights with ``--network``, ``hf:FOLDER`` of
transformers, or ``module:factory``. What a run was trained with is taken from its folder: network, classes, channels,
tiles. A mask holds class numbers, or with ``--ids`` the ids that the data's own masks have; ``classes.json`` in the
folder reads it either way. What is there and whole is not predicted again, so a killed command goes on where it was; an
image that was written anew since is. A folder holds the masks of one folder of images.
``evaluate.py`` compares the masks with others.

``python examples/predict.py runs/cbst my/images --out my/predictions --confidence --overlay``
"""

from __future__ import annotations

import argparse
import io
import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import _prediction as predicting
import numpy as np
import torch
from _prediction import Item
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from selftrain_seg.confidence import top_confidence
from selftrain_seg.datasets import LabelMap
from selftrain_seg.visualize import overlay

ENDINGS = {"masks": ".png", "confidence": ".png", "overlays": ".jpg"}
# What may change from one command to the next: it changes no pixel of what is there.
_MAY_CHANGE = ("images", "out", "confidence", "overlay", "names", "batch", "device", "workers", "threads", "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run, a file of weights, hf:FOLDER, or module:factory")
    parser.add_argument("images", type=Path, help="folder, of any depth")
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="folder (default: predictions)")
    parser.add_argument("--confidence", action="store_true", help="of each pixel, too: grey, 255 is certain")
    parser.add_argument("--overlay", action="store_true", help="pictures with the masks over the images, too")
    parser.add_argument("--ids", action="store_true", help="masks hold the ids of the data's own, not class numbers")
    predicting.add_options(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    classes = predicting.complete(args, args.model)
    values = values_of(classes, args.ids)
    if args.images.resolve() in [args.out.resolve(), *args.out.resolve().parents]:
        raise SystemExit(f"--out {args.out}: lies in the folder of images, and would be taken for images next time")
    images = predicting.open_images(args.images, args)
    kinds = ["masks"] + ["confidence"] * args.confidence + ["overlays"] * args.overlay
    stamps = {name: stamp(images._image_path(name)) for name in images.names}
    with predicting.writing(args.out):
        settings, before = settings_of(args)
        missing = [
            place
            for place, name in enumerate(images.names)
            if before.get(name) != stamps[name] or not all(whole(args.out, kind, images, place) for kind in kinds)
        ]
    problems: list[str] = []
    if missing:
        predicting.check_out(args.out)
        net = predicting.open_network(args, args.model, classes)
        with predicting.writing(args.out):
            begin(args, classes, settings, before, stamps)
        with tqdm(total=len(images), initial=len(images) - len(missing), unit="image", disable=None) as bar:
            for batch in predicting.read(images, missing, args):
                problems += [item.problem for item in batch if item.image is None]
                with predicting.writing(args.out):
                    write(net, [item for item in batch if item.image is not None], args, classes, values, kinds)
                bar.update(len(batch))
    now, kept = len(missing) - len(problems), len(images) - len(missing)
    were = "was" if kept == 1 else "were"
    print(f"{predicting.counted(len(images), 'image')}: {now} predicted now, {kept} {were} there")
    print(f"masks, which {args.out / 'classes.json'} reads: {args.out / 'masks'}")
    if problems:
        what = f"{predicting.counted(len(problems), 'image')} could not be read:"
        raise SystemExit("\n".join([what, *problems[:20]]))


def write(net: Any, batch: list[Item], args: Namespace, classes: LabelMap, values: Tensor, kinds: list[str]) -> None:
    """Predict images of one size, and write what was asked for; the mask last."""
    if not batch:
        return
    images = torch.stack([item.image for item in batch])
    top = top_confidence(predicting.logits_of(net, images, args))
    labels, confidence = top.labels.cpu(), top.log_confidence.exp().nan_to_num(nan=0.0).cpu()
    for item, image, mask, sure in zip(batch, images, labels, confidence, strict=True):
        if "overlays" in kinds:
            seen = image[None, :3] if len(image) >= 3 else image[None, :1].expand(-1, 3, -1, -1)
            painted = overlay(seen, mask[None], classes.palette, opacity=0.6)[0].movedim(0, -1)
            put(place_of(args.out, "overlays", item.name), Image.fromarray(painted.numpy()), quality=90)
        if "confidence" in kinds:
            grey = (255 * sure).round().byte().numpy()
            put(place_of(args.out, "confidence", item.name), Image.fromarray(grey))
        put(place_of(args.out, "masks", item.name), mask_image(values[mask], classes, values))


def values_of(classes: LabelMap, ids: bool) -> Tensor:
    """What stands for each class in a mask: its number, or the first of its ids."""
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
    """With a palette up to 255, else of 16 bits."""
    if int(values.max()) > 255:
        return Image.fromarray(mask.numpy().astype(np.uint16))
    table = torch.zeros(256, 3, dtype=torch.uint8)
    table[values] = torch.tensor(classes.palette, dtype=torch.uint8)
    image = Image.fromarray(mask.byte().numpy())
    image.putpalette(table.numpy().tobytes())
    return image


def place_of(out: Path, kind: str, name: str) -> Path:
    """Where a picture of an image lies; a name may have dots in it."""
    return out / kind / f"{name}{ENDINGS[kind]}"


def put(path: Path, image: Image.Image, **options: int) -> None:
    """Write a picture that is either complete or not there: under another name, on the disk, then renamed."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if path.suffix == ".png" else "JPEG", **options)
    put_bytes(path, buffer.getvalue())


def put_bytes(path: Path, data: bytes) -> None:
    """Do the same with bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def whole(out: Path, kind: str, images: Any, place: int) -> bool:
    """Tell whether a picture is there, can be decoded, and has the size of its image."""
    path = place_of(out, kind, images.names[place])
    if not path.is_file():
        return False
    try:
        with Image.open(path) as picture:
            picture.verify()  # sums of PNG, of what Pillow does not need for the pixels, too
        with Image.open(path) as picture:
            picture.load()
            size = picture.size
    except Exception:  # of any kind, where bytes are none of a picture: it is predicted again
        return False
    try:
        with Image.open(images._image_path(images.names[place])) as image:
            return size in (image.size, image.size[::-1])  # turned by EXIF
    except Exception:  # of a kind that Pillow alone does not open
        return True


def stamp(path: Path) -> list[int]:
    """Tell a file from what it was before: size, and time of the last change in ns."""
    try:
        status = path.stat()
    except OSError:  # reading it will say why
        return []
    return [status.st_size, status.st_mtime_ns]


def settings_of(args: Namespace) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """What the folder is made with, and the stamps of its images; one that was made otherwise is refused."""
    made = {name: value for name, value in vars(args).items() if name not in _MAY_CHANGE}
    made = json.loads(json.dumps({**made, "weights": predicting.fingerprint(args.model)}, default=str))
    folder, stamps = str(args.images.resolve()), {}
    path = args.out / "predict.json"
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            of, stamps = found["images"], dict(found["stamps"])
        except (ValueError, TypeError, KeyError):
            raise SystemExit(f"{path}: damaged, or not of this version: choose another --out") from None
        if of != folder:
            raise SystemExit(f"{args.out} was made of the images in {of}, not {folder}: choose another --out")
        changed = [name for name in made if found.get(name) != made[name]]
        if changed:
            what = "; ".join(f"{name} {found.get(name)}, now {made[name]}" for name in changed)
            raise SystemExit(f"{args.out} was made with {what}: choose another --out, or remove the folder")
    elif (args.out / "masks").exists():
        raise SystemExit(f"{args.out}: holds masks of something else: choose another --out")
    return {**made, "images": folder}, stamps


def begin(
    args: Namespace,
    classes: LabelMap,
    settings: dict[str, Any],
    before: dict[str, list[int]],
    stamps: dict[str, list[int]],
) -> None:
    """Note what the folder is made with, and what reads its masks; remove what was made of images that have changed."""
    args.out.mkdir(parents=True, exist_ok=True)
    for name, now in stamps.items():
        if before.get(name) != now:
            for kind in ENDINGS:  # before the new stamp is noted, as this process may be killed at any moment
                place_of(args.out, kind, name).unlink(missing_ok=True)
    for half in args.out.rglob(".*.tmp"):
        half.unlink()  # of a process that was killed while it wrote
    numbers = {number: number for number in range(classes.num_classes)}
    (classes if args.ids else LabelMap(numbers, classes.classes, classes.palette)).save(args.out / "classes.json")
    noted = {**settings, "stamps": dict(sorted({**before, **stamps}.items()))}
    put_bytes(args.out / "predict.json", (json.dumps(noted, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
