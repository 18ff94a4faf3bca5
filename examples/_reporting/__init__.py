"""Record the rounds of a run for its report: IoU, precision of labels, and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from _common.advice import in_options
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import make_grid

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.confidence import top_confidence
from selftrain_seg.visualize import (
    confidence_map,
    image_sheet,
    overlay,
    record_picture,
    record_round,
    selection_map,
)

if TYPE_CHECKING:
    from _common.run import Run
    from _data.opening import Data

    from selftrain_seg.store import StoredRound

_FEW = 0.001  # share of selected pixels below which a round has too few labels
_SAMPLE = 50  # images to measure the precision of labels on


def record(
    run: Run,
    data: Data,
    number: int,
    *,
    iou: Tensor | None = None,
    stored: StoredRound | None = None,
    thresholds: Tensor | None = None,
    group: str = "",
) -> None:
    """Record a round for the report: its IoU, and the precision of its labels.

    The report reads thresholds and selected shares from the store. ``thresholds`` is for those that are not stored.
    True labels of target images, if there are any, are used for the precision alone.
    """
    if run.main:
        precision = None if stored is None else _precision(run, data, number, stored, group)
        others = list(subset_means(iou, data).items())[1:] if iou is not None else ()
        values = {"thresholds": thresholds, "precision": precision, "iou": iou, "means": dict(others)}
        record_round(run.out, number, classes=data.label_map.classes, group=group, **values)


def subset_means(iou: Tensor, data: Data) -> dict[str, float]:
    """Return the mean IoU of each of the data's subsets of classes."""
    return {heading: float(iou[list(classes)].nanmean()) for heading, classes in data.subsets.items()}


def _precision(run: Run, data: Data, number: int, stored: StoredRound, group: str) -> Tensor | None:
    """Return the share of correct labels of each class, on up to 50 images, and draw the first three images."""
    if not data.has_truth:
        return None
    try:
        target = data.target_with(True)
    except (OSError, ValueError):  # there are no true labels
        return None
    counts = torch.zeros(2, data.label_map.num_classes, dtype=torch.int64)
    samples: list[tuple[Tensor, Tensor, Tensor]] = []
    places = {name: place for place, name in enumerate(target.names)}  # images without a mask may be left out
    names = [name for name in stored.names if name in places]
    for name in names[:: max(1, -(-len(names) // _SAMPLE))]:
        try:
            (image, truth), labels = target[places[name]], stored.labels(name)
        except (OSError, ValueError) as error:  # training does not need it
            run.say(f"round {number}: precision not measured: {in_options(error)}")
            return None
        known = (labels != IGNORE_INDEX) & (truth != IGNORE_INDEX)
        for row, pixels in enumerate((known, known & (labels == truth))):
            counts[row] += labels[pixels].bincount(minlength=counts.shape[1])
        if len(samples) < 3 and (not samples or image.shape == samples[0][0].shape):
            samples.append((image.as_subclass(Tensor), labels, truth.as_subclass(Tensor)))
    if not samples:
        return None
    images, labels, truth = (torch.stack(part) for part in zip(*samples, strict=True))
    name = f"round {number} selection {group}".strip()
    record_picture(run.out, name, selection_map(three_channels(images), labels, truth=truth))
    return counts[1] / counts[0]


def warn_of_few_labels(run: Run, number: int, stored: StoredRound) -> None:
    """Warn if a round has too few labels to learn from."""
    if stored.selected_share < _FEW:
        run.say(
            f"warning: round {number} selected only {100 * stored.selected_share:.3g} % of the target's pixels: "
            "start from a network that is trained on these classes (--init), or select more"
        )


def draw_predictions(images: Tensor, logits: Tensor, labels: Tensor | None, data: Data, run: Run, name: str) -> None:
    """Draw predictions on a few images for the tracker and the report, and their confidence for the report."""
    images, logits = three_channels(images[:6]), logits[:6]
    if logits.shape[-2:] != images.shape[-2:]:
        logits = F.interpolate(logits, size=images.shape[-2:], mode="bilinear")
        labels = None if labels is None else F.interpolate(labels[:, None].float(), size=images.shape[-2:])[:, 0].long()
    palette, top = data.label_map.palette, top_confidence(logits)
    maps = {"prediction": top.labels} | ({} if labels is None else {"truth": labels[:6]})
    painted = {column: overlay(images, shown, palette, opacity=0.6) for column, shown in maps.items()}
    rows = ((255 * images).round().byte(), *painted.values())
    run.picture(f"images, predictions{'' if labels is None else ', truth'}", make_grid(torch.cat(rows), len(images)))
    columns = {"image": images[:4], **{column: shown[:4] for column, shown in painted.items()}}
    sheet = image_sheet(columns, palette=palette, classes=data.label_map.classes)
    record_picture(run.out, f"{name} predictions", sheet)
    confidence = confidence_map(top.log_confidence[:4].exp(), images=images[:4])
    record_picture(run.out, f"{name} confidence", confidence)


def three_channels(images: Tensor) -> Tensor:
    """Return the first three channels, or the first one as grey."""
    return images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
