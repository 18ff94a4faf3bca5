"""The results of the quickstart: tables in the terminal, a picture, and records for the report."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import torch
from _common.files import save_json, save_picture
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.mining import mine_crops
from selftrain_seg.selectors import SelectionSummary
from selftrain_seg.stopping import RoundCheck
from selftrain_seg.visualize import crop_sheet, curves, record_picture, record_round, record_step, selection_map

LOSS_EVERY = 10  # steps between recorded losses


def print_round(title: str, classes: Sequence[str], thresholds: Tensor, summary: SelectionSummary) -> None:
    """Print the threshold of each class, the share of its pixels that is selected, and their precision."""
    print(f"\n{title}\n{'class':<12}{'threshold':>12}{'selected':>10}{'precision':>11}")
    columns = (thresholds, summary.share, summary.precision)
    for name, threshold, share, precision in zip(classes, *(column.tolist() for column in columns), strict=True):
        # Print thresholds close to 1 by their distance from 1.
        shown = f"{threshold:.4f}" if threshold < 0.9999 else f"1 - {1 - threshold:.0e}"
        print(f"{name:<12}{shown:>12}{100 * share:>9.1f}%{100 * precision:>10.1f}%")


def _mean_iou(results: Sequence[Tensor], columns: Sequence[int]) -> list[float]:
    return [float(iou[list(columns)].nanmean()) for iou in results]


def print_table(results: Mapping[str, Sequence[Tensor]], classes: Sequence[str], rare: Sequence[int]) -> None:
    """Print the IoU of each run on the validation images: the mean over classes, over rare classes, and each class.

    Args:
        results: maps the name of a run to the IoU of each class (C,), in percent, one tensor per seed.
        classes: names of the classes.
        rare: indices of the rare classes.
    """
    seeds = max(len(runs) for runs in results.values())
    width = max(map(len, results)) + 2
    print(f"\ntarget validation, IoU in %{f', mean of {seeds} seeds' if seeds > 1 else ''}")
    print(f"{'':<{width}}{'mIoU':>6}{'rare':>7}  " + "".join(f"{name[:6]:>7}" for name in classes))
    for name, runs in results.items():
        mean, rare_mean = (_mean_iou(runs, columns) for columns in (range(len(classes)), rare))
        each = torch.stack(list(runs)).nanmean(dim=0)
        print(
            f"{name:<{width}}{sum(mean) / len(mean):>6.1f}{sum(rare_mean) / len(mean):>7.1f}  "
            + "".join(f"{iou:>7.1f}" for iou in each.tolist())
        )
    if seeds > 1:
        print("\nby seed, mIoU / rare")
        for name, runs in results.items():
            pairs = zip(_mean_iou(runs, range(len(classes))), _mean_iou(runs, rare), strict=True)
            print(f"{name:<{width}}" + "   ".join(f"{mean:.1f} / {rare_mean:.1f}" for mean, rare_mean in pairs))


def write_picture(
    path: Path, sheet: Figure, curves_by_run: Mapping[str, Sequence[Tensor]], classes: Sequence[str]
) -> None:
    """Write a picture of a sheet of images, and below it a chart of the mIoU after each round.

    Args:
        path: the PNG file to write.
        sheet: a sheet of ``image_sheet``.
        curves_by_run: maps the name of a run to the IoU of each class (C,): of the source network, with BatchNorm
            re-estimated, and after each round.
        classes: names of the classes.
    """
    means = {name: _mean_iou(ious, range(len(classes))) for name, ious in curves_by_run.items()}
    chart = curves(means, xlabel="", ylabel="target mIoU, %")
    rounds = max(map(len, means.values())) - 2
    steps = ["source only", "BatchNorm\nre-estimated", *(f"round {number + 1}" for number in range(rounds))]
    axis = chart.axes[0]
    axis.set_xticks(range(len(steps)), steps)
    axis.set_ylim(0, min(100, 1.15 * max(map(max, means.values()))))
    for step, mean in enumerate(*means.values()) if len(means) == 1 else ():  # with several lines, the legend has them
        axis.annotate(f"{mean:.1f}", (step, mean), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    chart.set_size_inches(sheet.get_figwidth(), 2.6)
    parts = []
    for figure in (sheet, chart):
        drawn = BytesIO()
        figure.savefig(drawn, dpi=140)
        parts.append(Image.open(drawn).convert("RGB"))
    whole = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    save_picture(whole, path, optimize=True)


def record(folder: Path, run: str, number: int, steps: int, saved: Mapping[str, Tensor], target: TensorDataset) -> None:
    """Record a round for the report.

    Args:
        folder: the folder of the report's files.
        run: the name of the run.
        number: the round, counted from 1.
        steps: the training steps of each round.
        saved: the round's checkpoint.
        target: target images and their true labels, which the pictures compare with the pseudo-labels.
    """
    values = {name: saved[name] for name in ("thresholds", "selected", "precision", "iou") if name in saved}
    record_round(folder, number, classes=SyntheticStreets.classes, group=run, **values)
    for index, loss in enumerate(saved["losses"].tolist()):
        record_step(folder, (number - 1) * steps + LOSS_EVERY * index, {f"{run} loss": loss})
    if "labels" in saved:
        images, truth = (tensor[: len(saved["labels"])].cpu() for tensor in target.tensors)
        labels = saved["labels"].cpu()
        record_picture(folder, f"{run}, round {number} selection", selection_map(images, labels, truth=truth))
        if "crop" in saved:
            size, rare = tuple(saved["crop"].tolist()), saved["rare"].cpu()
            corners = mine_crops(labels, rare, size, chance=1.0, generator=torch.Generator().manual_seed(0))
            sheet = crop_sheet(images, corners, size, labels=labels, classes=rare)
            record_picture(folder, f"{run}, round {number} crops around rare classes", sheet)


def record_check(folder: Path, run: str, check: RoundCheck) -> None:
    """Record the score of the check after each round for the report; round 0 is the network before training."""
    for number, score in enumerate(check.scores):
        record_step(folder, number, {f"{run}, {check.score} by round": score})


def write_results(
    folder: Path,
    args: Namespace,
    results: Mapping[str, Sequence[Tensor]],
    classes: Sequence[str],
    rare: Sequence[int],
    verdicts: Mapping[str, str],
) -> None:
    """Write ``arguments.json`` and ``result.json`` for the report: IoU averaged over seeds, and verdicts.

    ``verdicts`` maps the name of a run to the verdict of its check.
    """
    found = {}
    for name, runs in results.items():
        mean, rare_mean = (_mean_iou(runs, columns) for columns in (range(len(classes)), rare))
        iou = torch.stack(list(runs)).nanmean(dim=0).tolist()
        found[name] = {
            "mIoU": sum(mean) / len(runs),
            "rare": sum(rare_mean) / len(runs),
            "iou": dict(zip(classes, iou, strict=True)),
        }
    options = {name: value for name, value in vars(args).items() if name not in ("cache", "notes")}
    save_json(options, folder / "arguments.json", default=str)
    named = {f"verdict, {name}": verdict for name, verdict in verdicts.items()}
    save_json({**named, **found}, folder / "result.json")
