"""IoU, Dice, recall and precision from one confusion matrix; as numbers, a table and a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from _common.files import save_picture
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix
from tqdm import tqdm

from _prediction.options import counted
from selftrain_seg import IGNORE_INDEX
from selftrain_seg.datasets import LabelMap

Pairs = Iterator[tuple[str, Tensor, Tensor]]  # name, predicted labels (H, W), true labels (H, W)


def count(pairs: Pairs, total: int, num_classes: int) -> tuple[Tensor, int, int]:
    """Sum the confusion matrix over all images.

    Returns:
        The matrix (C, C + 1): true class by predicted class, the last column for predictions without a class. The
        number of images. The number of pixels without a true class.
    """
    matrix, images, ignored = MulticlassConfusionMatrix(num_classes + 1, ignore_index=IGNORE_INDEX), 0, 0
    for _, predicted, true in tqdm(pairs, "evaluating", total, unit="image", leave=False, disable=None):
        matrix.update(predicted.where(predicted != IGNORE_INDEX, num_classes)[None], true[None])
        images, ignored = images + 1, ignored + int((true == IGNORE_INDEX).sum())
    counts = matrix.compute().long()[:num_classes] if images else torch.zeros(num_classes, num_classes + 1).long()
    if int(counts.sum()) == 0:
        raise SystemExit(f"no pixel of {counted(images, 'mask')} has a class: do the masks have other ids?")
    return counts, images, ignored


def measures(matrix: Tensor, classes: LabelMap) -> dict[str, Any]:
    """Return all scores in percent. A class that neither occurs nor is predicted has NaN and is left out of means."""
    counts = matrix.double()
    right, true, predicted = counts[:, :-1].diag(), counts.sum(1), counts[:, :-1].sum(0)
    iou, dice = 100 * right / (true + predicted - right), 200 * right / (true + predicted)
    subsets = {"": tuple(range(classes.num_classes))}
    for size in (16, 13):
        try:
            subsets[f"-{size}"] = classes.synthia_subset(size)
        except ValueError:  # the classes are not those of Cityscapes
            continue
    found: dict[str, Any] = {"accuracy": float(100 * right.sum() / true.sum())}
    for name, subset in subsets.items():
        found |= {
            f"mIoU{name}": float(iou[list(subset)].nanmean()),
            f"mDice{name}": float(dice[list(subset)].nanmean()),
        }
    columns = {"IoU": iou, "Dice": dice, "recall": 100 * right / true, "precision": 100 * right / predicted}
    found["classes"] = {
        name: {
            **{measure: float(values[number]) for measure, values in columns.items()},
            "pixels": int(true[number]),
        }
        for number, name in enumerate(classes.classes)
    }
    return {**found, "confusion": matrix.tolist()}


def table(found: dict[str, Any]) -> str:
    """Return the scores as a table for the terminal."""

    def text(value: float) -> str:
        return "-" if math.isnan(value) else f"{value:.1f}"

    width = max(map(len, found["classes"]), default=0)
    columns = ("IoU", "Dice", "recall", "precision")
    lines = [f"{'':{width}}" + "".join(f"{column:>11}" for column in columns)]
    for name, row in found["classes"].items():
        lines.append(f"{name:{width}}" + "".join(f"{text(row[column]):>11}" for column in columns))
    means = ", ".join(f"{name} {text(value)}" for name, value in found.items() if name.startswith(("mIoU", "mDice")))
    share = 100 * found["ignored"] / (found["ignored"] + found["pixels"])
    lines.append(f"{means}, accuracy {text(found['accuracy'])}")
    lines.append(f"{counted(found['images'], 'image')}, {share:.1f} % of the pixels have no true class")
    return "\n".join(lines)


def save_confusion(matrix: Tensor, classes: LabelMap, path: Path) -> None:
    """Draw the share of each true class that is predicted as each class."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = 100 * matrix.double() / matrix.sum(1, keepdim=True)
    predicted = [*classes.classes, "no class"] if int(matrix[:, -1].sum()) else [*classes.classes]
    shares = shares[:, : len(predicted)].numpy()
    side = 2.2 + 0.42 * len(predicted)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(predicted)), predicted, rotation=90)
    axes.set_yticks(range(classes.num_classes), classes.classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for row, values in enumerate(shares):
        for column, value in enumerate(values):
            if not math.isnan(value) and value >= 0.5:
                ink = "white" if value > 55 else "black"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=ink)
    figure.colorbar(drawn, label="% of the true pixels", shrink=0.7)
    save_picture(figure, path, dpi=130)
