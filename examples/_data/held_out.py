"""Held-out source images, and the same images in the colours of target images."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from _common.loading import as_floats
from torch import Tensor
from torch.utils.data import Dataset

from selftrain_seg.restyle import match_moments

if TYPE_CHECKING:
    from _common.run import Run
    from _common.settings import Settings

    from _data.opening import Data

_RUN = 8  # neighbours that are held out together, because frames of a video are alike


def holds_out(settings: Settings) -> bool:
    """Return whether a run needs held-out source images."""
    return settings.check != "none" or settings.reestimate_bn == "auto"


def held_out_places(length: int, most: int) -> list[int]:
    """Return the indices to hold out: an eighth, at most ``most``, in groups of neighbours spread evenly."""
    count = max(1, min(most, length // 8))
    runs = -(-count // _RUN)
    firsts = [(2 * run + 1) * length // (2 * runs) for run in range(runs)]  # the middle of each of ``runs`` parts
    sizes = [(run + 1) * count // runs - run * count // runs for run in range(runs)]
    return [first - size // 2 + step for first, size in zip(firsts, sizes, strict=True) for step in range(size)]


def hold_out(data: Data, run: Run) -> Data:
    """Move some source images to ``held_out``, the same ones in every run on this data."""
    settings = run.settings
    if data.source is None and settings.reestimate_bn not in (0, 1):
        raise SystemExit(f"--reestimate-bn {settings.reestimate_bn}: this trainer has no source images: 0 or 1")
    if not holds_out(settings) or data.held_out is not None:
        return data
    if data.source is None:
        raise SystemExit(f"--check {settings.check}: this trainer has no source images to hold out: use --check none")
    if len(data.source) < 2:
        raise SystemExit("--check and --reestimate-bn auto hold out source images: expected at least 2, got 1")
    places = held_out_places(len(data.source), settings.check_images)
    rest = sorted(set(range(len(data.source))) - set(places))
    _warn_if_trained_on(run)
    return data._replace(source=data.source.only(rest), held_out=data.source.only(places))


def _warn_if_trained_on(run: Run) -> None:
    """Warn if ``--init`` was trained on the held-out images, which favours the network before training."""
    settings = run.settings
    if settings.init is None:
        return
    path = (settings.init if settings.init.is_dir() else settings.init.parent) / "arguments.json"
    if not path.is_file():
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    held_out = found.get("check", "none") != "none" or found.get("reestimate_bn") == "auto"
    if found.get("data") == settings.data and not (held_out and found.get("check_images") == settings.check_images):
        run.say(
            f"warning: {settings.init} was trained on the held-out images, so the check favours it: train it with the "
            "same --check and --check-images"
        )


class Restyled(Dataset[tuple[Tensor, Any]]):
    """Labelled source images in the colours of target images, always the same pairs.

    RGB images take on the moments of the target image in CIE Lab, which ranks networks on the synthetic benchmark
    better than RGB. Other images take on the moments of each channel.

    Args:
        source: items are (image, labels).
        target: items are (image, name).
    """

    def __init__(self, source: Dataset[Any], target: Dataset[Any]) -> None:
        self.source, self.target = source, target
        generator = torch.Generator().manual_seed(0)
        self.styles = torch.randint(len(target), (len(source),), generator=generator).tolist()

    def __len__(self) -> int:
        return len(self.styles)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, labels = self.source[index]
        style, _ = self.target[self.styles[index]]
        plain = (as_floats(part.as_subclass(Tensor)[None]) for part in (image, style))
        return match_moments(*plain, space="lab" if image.shape[0] == 3 else "rgb", clip=True)[0], labels
