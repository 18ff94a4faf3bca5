"""Checks before training: values, sizes and meaning of images and masks."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _common.advice import in_options, of_names
from _common.files import save_json
from _common.loading import Readable
from _common.progress import progress
from PIL import ExifTags, Image
from torch import Tensor

if TYPE_CHECKING:
    from _common.run import Run
    from _common.settings import Settings

    from _data.opening import Data, Part

_SAMPLE = 50  # source masks to read of known data sets
_ROUNDING = 2**-8  # a step of 8 bits
_WHITE_SAMPLE = 20  # images to read for the advice on --white


def check_values(image: Tensor, path: Path) -> None:
    """Raise a ValueError if a floating-point image has values outside [0, 1], up to rounding, or NaN."""
    if image.is_floating_point():
        low, high = (float(value) for value in image.aminmax())
        if not -_ROUNDING <= low <= high <= 1 + _ROUNDING:
            raise ValueError(
                f"{path}: expected 8 or 16 bits, or floating point from 0 to 1, got {low:g} to {high:g}: divide the "
                "values by that of white, or save 16-bit integers and set --white"
            )


def check_pasting(run: Run) -> None:
    """Exit if a process has a single target image with ``--paste-from target``."""
    if run.settings.paste_from == "target" and run.settings.batch == run.world:
        raise SystemExit(
            "--paste-from target: a process pastes between its own images, and --batch gives each process only one"
        )


def digests(parts: dict[str, Any], settings: Settings) -> dict[str, str]:
    """Return digests of each part's names and file sizes, and of the file of classes."""
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


def suggest_white(data: Data, settings: Settings, run: Run) -> None:
    """Suggest ``--white`` if 16-bit images are nearly black."""
    if settings.data != "folders" or settings.white is not None or not run.main:
        return
    for heading, part in (("source", data.source), ("target", data.target)):
        highest = 0.0
        for name in () if part is None else part.names[:_WHITE_SAMPLE]:
            try:
                picture = part.dataset._read_picture(name)
            except (OSError, ValueError):  # training reports it when it reads the file
                continue
            highest = max(highest, float(picture.image.max()) if picture.bits == 16 else 1.0)
            if highest >= 1 / 8:
                break
        if 0 < highest < 1 / 8:
            brightest = round(65535 * highest)
            run.say(f"{heading} images: 16 bits, but the brightest value is {brightest} of 65535: --white {brightest}?")


def _check_headers(part: Part) -> None:
    """Compare the sizes in the headers of images and masks, as far as Pillow can read them."""
    for name in part.names:
        image, mask = part.dataset._image_path(name), part.dataset._label_path(name)
        sizes = [_header_size(path) for path in (image, mask)]
        if None not in sizes and sizes[0] != sizes[1]:
            (height, width), (mask_height, mask_width) = sizes
            raise ValueError(f"{mask} is {mask_height} x {mask_width}, but its image {image} is {height} x {width}")


def _header_size(path: Path) -> tuple[int, int] | None:
    """Return height and width after EXIF rotation; None if Pillow cannot read the header."""
    try:
        with Image.open(path) as file:
            width, height = file.size
            rotated = file.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return (width, height) if rotated else (height, width)


def look_at_masks(data: Data, run: Run) -> None:
    """Print the share of labelled pixels in the source masks; exit if a mask is damaged or has the wrong ids.

    With ``--data folders`` all masks are read, so that errors in them are found before training. This takes time, so
    trainers call it after building the network.
    """
    if data.source is None:
        return
    settings = run.settings
    kept = run.out / "source-masks.json"  # from an earlier attempt with the same settings
    if run.main and not kept.exists():
        most = _SAMPLE if settings.data != "folders" or settings.smoke else None
        try:
            if settings.data == "folders":
                _check_headers(data.source)
            found = data.source.dataset.verify(
                progress=True, images=False, most=most, check_meaning=settings.check_meaning
            )
        except (OSError, ValueError) as error:
            raise SystemExit(f"--data {settings.data}, source masks: {in_options(error, of_names('source'))}") from None
        absent = [name for name, count in zip(found.classes, found.pixels, strict=True) if count == 0]
        run.say(
            f"{found.samples} source masks: {100 * (found.labelled or 0):.1f} % of the pixels have a class"
            f"{'; no pixel is ' + ' or '.join(absent) if absent else ''}"
        )
        save_json({"labelled": found.labelled, "pixels": dict(zip(found.classes, found.pixels, strict=True))}, kept)
    if run.world > 1:
        torch.distributed.barrier()


def check_one_size(data: Data, run: Run, option: str) -> None:
    """Exit if target images differ in size, for an option that needs one size. Trainers call it before training."""
    images = progress(Readable(data.target), "sizes of the target images", disable=not run.main)
    sizes = {tuple(image.shape[-2:]) for image, _ in images}
    if len(sizes) > 1:
        raise SystemExit(f"{option} needs target images of one size, got {len(sizes)} sizes: use --resize")
