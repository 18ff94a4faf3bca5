"""Write files for :func:`report` into a run folder: JSON and PNG, each completely or not at all."""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg._files import whole_file
from selftrain_seg.visualize._host import on_host
from selftrain_seg.visualize.colours import as_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["record_picture", "record_round", "record_step"]

ROUNDS, STEPS, PICTURES = "rounds", "steps.jsonl", "pictures"

_DPI = 120
_AT_MOST = {"thresholds": math.inf, "selected": math.inf, "precision": 1.0, "iou": 100.0}


def record_round(
    run_dir: str | os.PathLike[str],
    round: int,
    *,
    classes: Sequence[str],
    thresholds: Tensor | None = None,
    selected: Tensor | None = None,
    precision: Tensor | None = None,
    iou: Tensor | None = None,
    means: Mapping[str, float] | None = None,
    group: str = "",
    name: str = "",
) -> Path:
    """Record the selection and the result of a round, for :func:`report`. Call it in one process.

    Training rounds count from 1. Two earlier numbers hold the baselines: -1 is the network trained on the source only,
    and 0 is the network that round 1 starts from, after re-estimating BatchNorm on the target if the run does so.

    Args:
        run_dir: folder of the run; created if it does not exist.
        round: number of the round, -1 or above.
        classes: C names.
        thresholds: (C,) minimum confidence of each class.
        selected: (C,) selected pixels of each class / its predicted pixels, ``SelectionSummary.share``.
        precision: (C,) correct pixels / selected pixels, ``SelectionSummary.precision``.
        iou: (C,) IoU after the round, in percent.
        means: mean IoU of subsets of the classes, by name, in percent; NaN where unknown. The report shows them below
            the mean over all classes.
        group: name of a network or method, if a run has several; each has its own rounds.
        name: name of the round in the report. The default is "source only" for -1; for 0 "BatchNorm re-estimated" if
            there is a round -1, else "before"; and "round" with the number for others.

    Returns:
        Path of the file, ``rounds/round-0001.json`` or ``rounds/{group}/round-0001.json``; ``round-source.json`` for
        round -1. An existing file is replaced.

    Raises:
        TypeError: ``round`` is not an int.
        ValueError: ``round`` is below -1; there are no classes; a tensor is not (C,) or out of range; a mean is not in
            [0, 100]; ``group`` is not a valid file name.
        OSError: the file cannot be written.

    Example:
        >>> import json, tempfile, torch
        >>> from selftrain_seg.visualize import record_round
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = record_round(folder, 1, classes=["road", "sky"], iou=torch.tensor([93.5, torch.nan]))
        ...     file.name, json.loads(file.read_text())["iou"]
        ('round-0001.json', [93.5, None])
    """
    _checks.check_count(round, "round", minimum=-1)
    if not len(classes):
        raise ValueError("`classes`: expected at least one name")
    content: dict[str, Any] = {"round": int(round), "classes": [str(name) for name in classes]}
    if name:
        content["name"] = str(name)
    values = {"thresholds": thresholds, "selected": selected, "precision": precision, "iou": iou}
    for value_name, value in values.items():
        if value is not None:
            array = on_host(value)
            if array.shape != (len(classes),):
                raise ValueError(f"`{value_name}`: expected (C,) = ({len(classes)},), got {array.shape}")
            if (array < 0).any() or (array > _AT_MOST[value_name]).any():
                found = f"{np.nanmin(array):.3g} to {np.nanmax(array):.3g}"
                raise ValueError(f"`{value_name}`: expected values in [0, {_AT_MOST[value_name]:g}], got {found}")
            content[value_name] = [_plain(number) for number in array]
    if means:
        for mean_name, mean in means.items():
            if mean < 0 or mean > _AT_MOST["iou"]:
                raise ValueError(f"`means`: expected values in [0, 100], got {mean:.3g} for {mean_name!r}")
        content["means"] = {str(mean_name): _plain(mean) for mean_name, mean in means.items()}
    folder = Path(run_dir) / ROUNDS
    file = "round-source.json" if round < 0 else f"round-{round:04d}.json"
    path = (folder / _file_name(group, "group") if group else folder) / file
    write(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
    return path


def record_step(run_dir: str | os.PathLike[str], step: int, values: Mapping[str, Tensor | float]) -> None:
    r"""Append a line of numbers to ``steps.jsonl`` for :func:`report`. Call it from time to time, in one process.

    The host waits for tensors on a device. A run that resumes from a checkpoint may write some steps again; the last
    line wins. An incomplete line of a killed process is ignored.

    Args:
        run_dir: folder of the run; created if it does not exist.
        step: number of the step, counted over all rounds.
        values: name -> number, or tensor with one element.

    Raises:
        TypeError: ``step`` is not an int.
        ValueError: ``step`` is below 0, or a value is named "step".
        OSError: the file cannot be written.

    Example:
        >>> import pathlib, tempfile, torch
        >>> from selftrain_seg.visualize import record_step
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     record_step(folder, 10, {"loss": torch.tensor(0.5)})
        ...     (pathlib.Path(folder) / "steps.jsonl").read_text()
        '{"step": 10, "loss": 0.5}\n'
    """
    _checks.check_count(step, "step", minimum=0)
    if "step" in values:
        raise ValueError("`values`: expected other names than 'step'")
    plain = {str(name): _plain(value) for name, value in values.items()}
    path = Path(run_dir) / STEPS
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        start = b"" if file.read(1) in (b"", b"\n") else b"\n"  # after an incomplete line
        file.write(start + json.dumps({"step": int(step), **plain}).encode() + b"\n")


def record_picture(run_dir: str | os.PathLike[str], name: str, picture: Figure | Tensor) -> Path:
    """Write a picture for :func:`report`, which sorts pictures by name, ``round 2`` before ``round 10``.

    Args:
        run_dir: folder of the run; created if it does not exist.
        name: file name and caption, such as ``"round 1, selection"``.
        picture: a ``matplotlib.figure.Figure``, or an image (3, H, W), uint8 or floating point in [0, 1].

    Returns:
        Path of the file, ``pictures/{name}.png``. An existing file is replaced.

    Raises:
        TypeError: ``picture`` is neither a figure nor a tensor, or has another dtype.
        ValueError: ``name`` is not a valid file name; ``picture`` has another shape.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from selftrain_seg.visualize import record_picture
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     record_picture(folder, "noise", torch.rand(3, 4, 8)).name
        'noise.png'
    """
    path = Path(run_dir) / PICTURES / f"{_file_name(name, 'name')}.png"
    if isinstance(picture, Tensor):
        if picture.ndim != 3 or 0 in picture.shape:
            raise ValueError(f"`picture`: expected (3, H, W), got {tuple(picture.shape)}")
        pixels = on_host(as_bytes(picture[None], "picture")[0].permute(1, 2, 0))
        write(path, png(Image.fromarray(pixels)))
    elif hasattr(picture, "savefig"):
        write(path, png(picture, dpi=_DPI))
    else:
        raise TypeError(f"`picture`: expected a matplotlib Figure or a torch.Tensor, got {type(picture).__name__}")
    return path


def png(picture: Figure | Image.Image, **settings: Any) -> bytes:
    """Encode a picture as PNG; equal pictures and library versions give equal bytes."""
    buffer = io.BytesIO()
    if isinstance(picture, Image.Image):
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.savefig(buffer, format="png", metadata={"Software": None}, **settings)
    return buffer.getvalue()


def write(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write a file completely or not at all; without ``sync`` it may be lost in a power failure."""
    with whole_file(path, sync=sync) as file:
        file.write(data)


def _plain(value: Any) -> float | str | None:
    """Convert a number for JSON, which has neither NaN nor infinity."""
    number = float(np.squeeze(on_host(value)))  # a tensor of one element may have any shape
    return None if math.isnan(number) else number if math.isfinite(number) else str(number)


def _file_name(name: str, argument: str) -> str:
    if not name or len(name.encode("utf-8", "replace")) > 200 or re.search(r'^\.|[/\\:*?"<>|\x00-\x1f]|[. ]$', name):
        raise ValueError(f"`{argument}`: expected a file name that is valid on every system, got {name!r}")
    return name
