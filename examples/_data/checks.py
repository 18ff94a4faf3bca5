"""What is looked at before hours are spent on it: values, sizes and meaning of images and masks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _common.files import save_json
from _common.progress import progress
from _common.settings import in_options
from PIL import ExifTags, Image
from torch import Tensor

from selftrain_seg.mining import ClassIndex, classes_below

if TYPE_CHECKING:
    from _common.run import Run
    from _common.settings import Settings

    from _data.opening import Data, Part

_SAMPLE = 50  # source masks of the known data sets that are read; of a user's own, all are
_BRIGHTEST_OF = 20  # images that are read to ask about --white


def check_values(image: Tensor, name: str) -> None:
    """Stop if a floating-point image is not in [0, 1]."""
    if image.is_floating_point() and not 0 <= float(image.min()) <= float(image.max()) <= 1:
        raise SystemExit(
            f"{name}: expected 8 or 16 bits, or floating point from 0 to 1, got {float(image.min()):g} to "
            f"{float(image.max()):g}; --white says which value is white"
        )


def check_pasting(run: Run) -> None:
    """Stop if ``--paste-from target`` leaves a process nothing to paste from."""
    if run.settings.paste_from == "target" and run.settings.batch == run.world:
        raise SystemExit("--paste-from target: a process pastes between its own images, and --batch gives each but one")


def digests(parts: dict[str, Any], settings: Settings) -> dict[str, str]:
    """Digests of the names and sizes of each part's images, and masks where it has them; of the file of classes."""
    made = {name: _digest(part) for name, part in parts.items() if part is not None}
    if settings.classes is not None:
        made["classes"] = hashlib.sha256(settings.classes.read_bytes()).hexdigest()
    return made


def _digest(part: Part) -> str:
    digest, dataset = hashlib.sha256(), part.dataset
    for name in part.names:
        files = [dataset._image_path(name), *([dataset._label_path(name)] if dataset.labels is True else [])]
        digest.update(repr((name, [path.stat().st_size for path in files])).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def ask_about_white(data: Data, settings: Settings, run: Run) -> None:
    """Ask about ``--white`` where images of 16 bits are all but black."""
    if settings.data != "folders" or settings.white is not None or not run.main:
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
    settings = run.settings
    kept = run.out / "source-masks.json"  # of an attempt with the same arguments
    if run.main and not kept.exists():
        most = _SAMPLE if settings.data != "folders" or settings.smoke else None
        try:
            if settings.data == "folders":
                _check_headers(data.source)
            found = data.source.dataset.verify(
                progress=True, images=False, most=most, check_meaning=settings.check_meaning
            )
        except (OSError, ValueError) as error:
            raise SystemExit(f"--data {settings.data}, source masks: {in_options(error)}") from None
        absent = [name for name, count in zip(found.classes, found.pixels, strict=True) if count == 0]
        run.say(
            f"{found.samples} source masks: {100 * (found.labelled or 0):.1f} % of the pixels have a class"
            f"{'; none is ' + ', '.join(absent) if absent else ''}"
        )
        save_json({"labelled": found.labelled, "pixels": dict(zip(found.classes, found.pixels, strict=True))}, kept)
    if run.world > 1:
        torch.distributed.barrier()


def rare_source_classes(data: Data, run: Run, share: float) -> Tensor:
    """Return the classes below a share of the labelled pixels in all source masks; none for a share of 0."""
    if share == 0:
        return torch.tensor([], dtype=torch.long)
    if run.settings.data == "folders":  # :func:`look_at_masks` has read them
        found = json.loads((run.out / "source-masks.json").read_text(encoding="utf-8"))
        counts = torch.tensor(list(found["pixels"].values()))
    else:
        masks = progress(data.source.masks(), "classes of the source masks", disable=not run.main)
        counts = ClassIndex.from_masks(masks, data.label_map.num_classes).counts.sum(0)
    return classes_below(counts, share=share)


def check_one_size(data: Data) -> None:
    """Two images at once are of one size; found out before the warm-up, not after it."""
    sizes = {tuple(data.target[place][0].shape[-2:]) for place in progress(range(len(data.target)), "sizes")}
    if len(sizes) > 1:
        raise SystemExit(f"--per batch needs target images of one size, and there are {len(sizes)}: --resize")
