"""Tables for the terminal and one picture for the eye."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.selectors import SelectionSummary


def print_round(title: str, classes: Sequence[str], thresholds: Tensor, summary: SelectionSummary) -> None:
    """Print what a round selected: per class the threshold, the share selected and how much of it is right."""
    print(f"\n{title}\n{'class':<12}{'threshold':>12}{'selected':>10}{'precision':>11}")
    columns = (thresholds, summary.share, summary.precision)
    for name, threshold, share, precision in zip(classes, *(column.tolist() for column in columns), strict=True):
        # Thresholds above 0.9999 differ in how far they are from 1: show that.
        shown = f"{threshold:.4f}" if threshold < 0.9999 else f"1 - {1 - threshold:.0e}"
        print(f"{name:<12}{shown:>12}{100 * share:>9.1f}%{100 * precision:>10.1f}%")


def _mean_iou(results: Sequence[Tensor], columns: Sequence[int]) -> list[float]:
    return [float(iou[list(columns)].nanmean()) for iou in results]


def print_table(results: Mapping[str, Sequence[Tensor]], classes: Sequence[str], rare: Sequence[int]) -> None:
    """Print the IoU on target validation of each run: mean over classes, over rare classes, and each class.

    Args:
        results: name of a run -> its per-class IoU in percent (C,), one tensor a seed.
        classes: names of the classes.
        rare: indices of the rare ones.
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


def _colour(labels: Tensor, palette: Sequence[tuple[int, int, int]]) -> Tensor:
    table = torch.zeros(IGNORE_INDEX + 1, 3, dtype=torch.uint8)
    table[: len(palette)] = torch.tensor(palette, dtype=torch.uint8)
    return table[labels.long()]


def write_report(
    path: Path,
    images: Tensor,
    columns: Mapping[str, Tensor],
    curves: Mapping[str, Sequence[Tensor]],
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
) -> None:
    """Write a picture: images beside their label maps, and mIoU by round.

    Args:
        path: PNG file to write, complete or not at all.
        images: (N, 3, H, W) uint8.
        columns: heading -> (N, H, W) labels.
        curves: name of a run -> per-class IoU (C,) before the first round and after each.
        classes: names, for the legend.
        palette: RGB colours of the classes.
    """
    rows, width = len(images), 1 + len(columns)
    figure: Figure = plt.figure(figsize=(3.1 * width, 1.62 * rows + 3.6), layout="constrained")
    pictures, below = figure.subfigures(2, 1, height_ratios=[1.62 * rows, 3.6])
    axes = pictures.subplots(rows, width, squeeze=False)
    for row in range(rows):
        shown = [images[row].permute(1, 2, 0), *(_colour(labels[row], palette) for labels in columns.values())]
        for axis, heading, picture in zip(axes[row], ["target image", *columns], shown, strict=True):
            axis.imshow(picture.numpy(), interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(heading, fontsize=11)
    chart, legend = below.subplots(1, 2, width_ratios=[3, 1])
    for name, results in curves.items():
        values = _mean_iou(results, range(len(classes)))
        chart.plot(range(len(values)), values, marker="o", label=f"{name}: {values[-1]:.1f}")
    chart.set_xticks(range(max(map(len, curves.values()))))
    chart.set_xlabel("round (0: BatchNorm re-estimated)")
    chart.set_ylabel("target mIoU, %")
    chart.grid(alpha=0.3)
    chart.spines[["top", "right"]].set_visible(False)
    chart.legend(frameon=False, fontsize=9, loc="best")
    legend.set_axis_off()
    handles = [Patch(color=[c / 255 for c in rgb], label=name) for name, rgb in zip(classes, palette, strict=True)]
    legend.legend(handles=[*handles, Patch(color="black", label="ignored")], ncols=2, loc="center", frameon=False)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    plt.close(figure)
    temporary.replace(path)
