"""Write docs/_generated/label_study.md: ``python docs/make_label_study.py``.

Measures, on the synthetic benchmark, how well reliabilities that need no target labels predict the precision of each
class on the target, and which thresholds give the best labels. Each seed trains a network on the source. True target
labels are used for evaluation only.

Needs ``pip install -e ".[examples]"`` and about two minutes per network on one core. Measurements are saved in
runs/label-study; delete the folder to measure again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from pictures.studies import kept, table
from pictures.training import train_source
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from torchmetrics.functional import spearman_corrcoef

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.losses import cross_entropy
from selftrain_seg.restyle import ConfusionMatrix, match_moments
from selftrain_seg.selectors import select_hard, select_reweighted
from selftrain_seg.thresholds import (
    ClassAgreement,
    ClassBalancedThreshold,
    GlobalThreshold,
    PrecisionThreshold,
    apply_floor,
    reliable_portion,
)

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "_generated" / "label_study.md"
C = SyntheticStreets.num_classes
SIZE = (64, 128)
STEPS, BATCH = 300, 6  # of training on the source
ROUND_STEPS, ROUND_BATCH = 60, 4  # of one round of CBST
SCALE = 0.75  # of the smaller view

RESTYLED = "precision on restyled source images"
MIRRORED = "agreement with the mirrored image"
SMALLER = f"agreement with the mirrored image at {SCALE} of its size"
ROUND = "after one round of CBST: "
BEFORE = "agreement with the previous round"
LABELS = (
    "`reliable_portion(0.3, precision, low=0.5, high=0.9)`",
    "`ClassBalancedThreshold`, as many pixels",
    "`GlobalThreshold`, as many pixels",
    "portion 1 with the floor of `PrecisionThreshold`, 0.95",
    "`ClassBalancedThreshold`, as many pixels",
    "`GlobalThreshold`, as many pixels",
)


def streets(domain: str, split: str, length: int) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, H, W) in [0, 1] and labels (N, H, W) of a part of the benchmark."""
    images, labels = zip(*SyntheticStreets(domain, split, size=SIZE, length=length), strict=True)
    return torch.stack(images), torch.stack(labels)


@torch.no_grad()
def logits_of(net: nn.Module, images: Tensor) -> Tensor:
    """Predict all images, in batches."""
    net.eval()
    return torch.cat([net(part) for part in images.split(20)])


def agreement(labels: Tensor, other: Tensor, measure: str = "precision") -> Tensor:
    """Measure the agreement of each class with another label map."""
    statistics = ClassAgreement(C)
    statistics.update(labels, other)
    return statistics.compute(measure=measure)


def rank_correlation(reliability: Tensor, truth: Tensor) -> float:
    """Spearman's correlation over the classes for which both are known."""
    known = ~(reliability.isnan() | truth.isnan())
    return float(spearman_corrcoef(reliability[known].float(), truth[known].float()))


def mirrored(net: nn.Module, images: Tensor, scale: float = 1.0) -> Tensor:
    """Predict labels on mirrored and resized images, and map them back."""
    size = [round(scale * side) for side in images.shape[-2:]]
    view = F.interpolate(images.flip(-1), size=size, mode="bilinear", antialias=True)
    logits = F.interpolate(logits_of(net, view), size=images.shape[-2:], mode="bilinear")
    return logits.argmax(1).flip(-1)


def on_source(logits: Tensor, labels: Tensor) -> Any:
    """Compare logits with true labels."""
    matrix = ConfusionMatrix(C)
    matrix.update(logits, labels)
    return matrix.compute()


def measure_seed(seed: int) -> dict[str, Any]:
    """Train a network on the source, and measure reliabilities and labels."""
    source, (held_out, held_out_labels) = streets("source", "train", 250), streets("source", "val", 50)
    target, truth = streets("target", "train", 100)
    as_bytes = TensorDataset((source[0] * 255).round().byte(), source[1].byte())
    net = train_source(as_bytes, steps=STEPS, batch=BATCH, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    styles = target[torch.randint(len(target), (len(held_out),), generator=generator)]
    restyled = match_moments(held_out, styles)

    logits, on_restyled = logits_of(net, target), logits_of(net, restyled)
    predicted = logits.argmax(1)
    found = on_source(on_restyled, held_out_labels)
    right = agreement(predicted, truth)
    correlations = {
        RESTYLED: rank_correlation(found.precision, right),
        MIRRORED: rank_correlation(agreement(predicted, mirrored(net, target)), right),
        SMALLER: rank_correlation(agreement(predicted, mirrored(net, target, SCALE)), right),
    }
    scores = {
        "source": on_source(logits_of(net, held_out), held_out_labels).miou,
        "restyled": found.miou,
        "target": on_source(logits, truth).miou,
    }
    sure = PrecisionThreshold(C, 0.95)
    sure.update(on_restyled, held_out_labels)
    labels = compare_labels(logits, truth, found.precision, sure.compute())

    balanced = ClassBalancedThreshold(C, 0.3)
    balanced.update(logits)
    train_round(net, source, (target, select_reweighted(logits, balanced.compute()).labels), generator)
    after = logits_of(net, target).argmax(1)
    right = agreement(after, truth)
    found = on_source(logits_of(net, restyled), held_out_labels)
    correlations |= {
        ROUND + RESTYLED: rank_correlation(found.precision, right),
        ROUND + BEFORE: rank_correlation(agreement(after, predicted), right),
        ROUND + BEFORE + " (IoU)": rank_correlation(agreement(after, predicted, "iou"), right),
    }
    return {"mIoU": {part: float(score) for part, score in scores.items()}, "rank": correlations, "labels": labels}


def train_round(
    net: nn.Module, source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    """Train one round on the labels of both domains."""
    net.train()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(ROUND_STEPS):
        optimizer.zero_grad()
        for images, labels in (source, target):
            chosen = torch.randint(len(images), (ROUND_BATCH,), generator=generator)
            cross_entropy(net(images[chosen]), labels[chosen]).backward()
        optimizer.step()


def compare_labels(logits: Tensor, truth: Tensor, precision: Tensor, floor: Tensor) -> list[dict[str, Any]]:
    """Label the target by reliability, and as many pixels by class-balanced thresholds and by one for all classes."""
    balanced, pooled = ClassBalancedThreshold(C, 0.3), GlobalThreshold(C, 0.3)
    for estimator in (balanced, pooled):
        estimator.update(logits)
    rows = []
    for thresholds in (
        balanced.compute(reliable_portion(0.3, precision, low=0.5, high=0.9)),
        apply_floor(balanced.compute(1.0), floor),
    ):
        rows.append(describe(logits, truth, thresholds))
        rows += [describe(logits, truth, each.compute(rows[-1]["share"])) for each in (balanced, pooled)]
    return rows


def describe(logits: Tensor, truth: Tensor, thresholds: Tensor) -> dict[str, Any]:
    """Return the labelled share of the pixels, the correct share of the labels, and the number of classes."""
    labels = select_hard(logits, thresholds).labels
    chosen = labels != IGNORE_INDEX
    known = chosen & (truth != IGNORE_INDEX)
    return {
        "share": float(chosen.double().mean()),
        "right": float((labels == truth)[known].double().mean()),
        "classes": len(labels[chosen].unique()),
    }


def page(found: dict[int, dict[str, Any]]) -> str:
    """Return the tables in Markdown."""
    networks = list(found.values())
    rows: list[list[str]] = [
        ["mIoU in %", *(f"network {number}" for number in range(1, len(networks) + 1))],
        *([part, *(f"{100 * network['mIoU'][part]:.1f}" for network in networks)] for part in networks[0]["mIoU"]),
    ]
    ranks = [
        ["Rank correlation with the true precision on the target, over classes", *rows[0][1:]],
        *([name, *(f"{network['rank'][name]:.2f}" for network in networks)] for name in networks[0]["rank"]),
    ]
    labels = [
        ["Correct labels, share of the pixels, classes", *rows[0][1:]],
        *([name, *(cell(network["labels"][number]) for network in networks)] for number, name in enumerate(LABELS)),
    ]
    seeds = " ".join(map(str, found))
    head = f"<!-- Written by `python docs/make_label_study.py --seeds {seeds}`. -->"
    return "\n\n".join((head, *map(table, (rows, ranks, labels)))) + "\n"


def cell(row: dict[str, Any]) -> str:
    return f"{100 * row['right']:.1f} % correct, {100 * row['share']:.0f} % of the pixels, {row['classes']} classes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "label-study")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {seed: kept(args.cache / f"seed-{seed}.json", lambda seed=seed: measure_seed(seed)) for seed in args.seeds}
    PAGE.write_text(page(found), encoding="utf-8")
    print(PAGE.relative_to(ROOT))


if __name__ == "__main__":
    main()
