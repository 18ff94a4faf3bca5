"""Write docs/_generated/prior_study.md: ``python docs/make_prior_study.py``.

Measures, on the synthetic benchmark, why CBST with the spatial prior ends below CBST without it. The network is trained
by ``python examples/source_only.py``. True target labels are used for evaluation, and for the target's prior.

Needs ``pip install -e ".[examples]"`` and about a minute for each line of the second table on one core. Measurements
are saved in runs/prior-study; delete the folder to measure again.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pictures.studies import kept, table
from pictures.training import SmallUNet, as_floats, jitter, reestimate_batchnorm
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchmetrics.functional import spearman_corrcoef
from torchmetrics.functional.classification import multiclass_jaccard_index

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.confidence import SpatialPrior, add_prior, top_confidence
from selftrain_seg.datasets import SyntheticStreets
from selftrain_seg.losses import cross_entropy
from selftrain_seg.selectors import select_reweighted
from selftrain_seg.thresholds import ClassBalancedThreshold

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "_generated" / "prior_study.md"
C = SyntheticStreets.num_classes
RARE = list(SyntheticStreets.rare)
LENGTHS = {("source", "train"): 1000, ("target", "train"): 250, ("target", "val"): 100}
SIGMA = 4.0  # of the prior, in pixels; the images are 64 x 128
PORTIONS, STEPS, BATCH, LR = (0.3, 0.4, 0.5), 80, 4, 2e-3  # of the rounds of CBST

NONE, SOURCE, TARGET = "no prior", "the source's prior, as published", "the target's prior, as published"
SOURCE_NORMALISED, TARGET_NORMALISED = "the source's prior, renormalised", "the target's prior, renormalised"
WAYS = (NONE, SOURCE, TARGET, SOURCE_NORMALISED, TARGET_NORMALISED)


class Streets(NamedTuple):
    """Images and labels (uint8) of the parts of the benchmark that the study uses."""

    source: TensorDataset
    target: TensorDataset
    val: TensorDataset


def draw(seed: int) -> Streets:
    """Draw the benchmark of a seed."""
    parts = []
    for (domain, split), length in LENGTHS.items():
        images, labels = zip(*SyntheticStreets(domain, split, length=length, seed=seed), strict=True)
        parts.append(TensorDataset((torch.stack(images) * 255).round().byte(), torch.stack(labels).byte()))
    return Streets(*parts)


@torch.no_grad()
def logits_of(net: nn.Module, images: Tensor) -> Tensor:
    """Predict all images, in batches."""
    return torch.cat([net(as_floats(part)) for part in images.split(25)])


def prior_of(way: str, streets: Streets) -> Tensor | None:
    """Estimate the prior of a variant from the labels of its domain."""
    if way == NONE:
        return None
    prior = SpatialPrior(C, tuple(streets.source.tensors[1].shape[-2:]), sigma_px=SIGMA)
    prior.update((streets.source if "source" in way else streets.target).tensors[1].long())
    return prior.compute()


def weigh(logits: Tensor, way: str, prior: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits, and the ``prior`` argument for thresholds and selectors."""
    if prior is None:
        return logits, {}
    return (add_prior(logits, prior), {}) if "renormalised" in way else (logits, {"prior": prior})


def label(logits: Tensor, way: str, prior: Tensor | None, portion: float) -> Tensor:
    """Return the labels (N, H, W) of a round of CBST."""
    weighted, options = weigh(logits, way, prior)
    balanced = ClassBalancedThreshold(C, portion, **options)
    balanced.update(weighted)
    return select_reweighted(weighted, balanced.compute(), **options).labels


def scores(labels: Tensor, truth: Tensor) -> dict[str, float]:
    """Return the mean IoU in % over all and over rare classes."""
    each = 100 * multiclass_jaccard_index(labels, truth.long(), C, average=None, ignore_index=IGNORE_INDEX)
    return {"mIoU": float(each.mean()), "rare": float(each[RARE].mean())}


def measure_labels(model: Path, streets: Streets) -> dict[str, Any]:
    """Measure the target labels of the source network: how they are ranked, and how many are correct."""
    net = source_network(model, streets)
    images, truth = streets.target.tensors
    logits, truth = logits_of(net, images), truth.long()
    rows = {}
    for way in WAYS:
        prior = prior_of(way, streets)
        weighted, options = weigh(logits, way, prior)
        top = top_confidence(weighted, **options)
        labels = label(logits, way, prior, PORTIONS[0])
        rows[way] = {
            "all pixels": scores(top.labels, truth)["mIoU"],
            "precision": precision(labels, truth),
            "overlap": overlap(labels, truth),
        }
        if prior is not None:
            log_p = logits.log_softmax(1).gather(1, top.labels[:, None])[:, 0]
            q = prior.expand(len(logits), -1, -1, -1).gather(1, top.labels[:, None])[:, 0]
            known = truth != IGNORE_INDEX
            at_truth = prior.expand(len(logits), -1, -1, -1).gather(1, truth.where(known, 0)[:, None])[:, 0][known]
            rows[way] |= {
                "rank with p": rank_correlation(top.log_confidence, log_p, top.labels),
                "rank with q": rank_correlation(top.log_confidence, q, top.labels),
                "log q of the truth": float(at_truth.clamp_min(1e-6).log().mean()),
                "q of the truth below 0.1": float((at_truth < 0.1).double().mean()),
            }
    return rows


def precision(labels: Tensor, truth: Tensor) -> dict[str, float]:
    """Return the share of correct labels in %, as a mean over all and over rare classes."""
    known = truth != IGNORE_INDEX
    right = torch.stack([(truth == c)[known & (labels == c)].double().mean() for c in range(C)]) * 100
    return {"all": float(right.nanmean()), "rare": float(right[RARE].nanmean())}


def overlap(labels: Tensor, truth: Tensor, cell: int = 8) -> float:
    """Return the overlap of labels and true positions of a class, in % of cells of the image, mean over classes."""
    shares = []
    for part in (labels, truth):
        maps = torch.stack([(part == c).float().mean(0) for c in range(C)])
        pooled = nn.functional.avg_pool2d(maps, cell).flatten(1)
        shares.append(pooled / pooled.sum(1, keepdim=True).clamp_min(1e-9))
    return float(100 * torch.minimum(*shares).sum(1).mean())


def rank_correlation(score: Tensor, other: Tensor, labels: Tensor) -> float:
    """Return Spearman's correlation among the pixels of a class, mean over classes, from every 50th pixel."""
    found = []
    for c in range(C):
        of_class = labels == c
        found.append(spearman_corrcoef(score[of_class][::50], other[of_class][::50]))
    return float(torch.stack(found).nanmean())


def source_network(model: Path, streets: Streets) -> nn.Module:
    """Load the source network, with BatchNorm statistics of the target."""
    net = SmallUNet(C).to(memory_format=torch.channels_last)
    net.load_state_dict(torch.load(model, weights_only=True))
    reestimate_batchnorm(net, streets.target)
    return net


def train(model: Path, streets: Streets, way: str, seed: int) -> list[dict[str, float]]:
    """Run CBST, and return the IoU on the target after each round."""
    net, prior = source_network(model, streets), prior_of(way, streets)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    images, truth = streets.val.tensors
    optimizer = torch.optim.AdamW(net.parameters(), LR, weight_decay=1e-2)
    found = [scores(logits_of(net, images).argmax(1), truth)]
    for portion in PORTIONS:
        labels = label(logits_of(net, streets.target.tensors[0]), way, prior, portion)
        domains = (streets.source, TensorDataset(streets.target.tensors[0], labels.byte()))
        net.train()
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = LR * (1 - step / STEPS) ** 0.9
            optimizer.zero_grad()
            for domain in domains:  # apart: in one batch BatchNorm would mix their statistics
                batch, mask = domain[torch.randint(len(domain), (BATCH,), generator=generator)]
                cross_entropy(net(jitter(as_floats(batch))), mask.long()).backward()
            optimizer.step()
        reestimate_batchnorm(net, streets.target)
        found.append(scores(logits_of(net, images).argmax(1), truth))
        print(way, found[-1], flush=True)
    return found


def page(labels: dict[str, Any], trained: dict[str, Any], command: str) -> str:
    """Return the tables in Markdown."""
    head = ("", "mIoU of all labels", "precision of selected labels", "of rare classes", "overlap of places")
    rows: list[Sequence[str]] = [(*head, "ρ with p", "ρ with q")]
    for way, row in labels.items():
        cells = [row["all pixels"], row["precision"]["all"], row["precision"]["rare"], row["overlap"]]
        ranks = [f"{row[key]:.2f}" if key in row else "" for key in ("rank with p", "rank with q")]
        rows.append([way, *(f"{cell:.1f}" for cell in cells), *ranks])
    numbers = (f"round {number + 1}" for number in range(len(PORTIONS)))
    rounds: list[Sequence[str]] = [("mIoU / rare classes, in %", "before", *numbers)]
    for way, found in trained.items():
        rounds.append([way, *(f"{score['mIoU']:.1f} / {score['rare']:.1f}" for score in found)])
    return "\n\n".join((f"<!-- Written by `{command}`. -->", table(rows), table(rounds))) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, default=ROOT / "runs" / "source_only" / "model.pt")
    parser.add_argument("--train", nargs="*", default=[NONE, SOURCE, TARGET, SOURCE_NORMALISED], choices=WAYS)
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "prior-study")
    args = parser.parse_args()
    torch.set_num_threads(1)
    streets = functools.cache(lambda: draw(args.seed))
    cache = args.cache / f"seed-{args.seed}"
    trained = {}
    for way in args.train:
        place = cache / f"cbst-{WAYS.index(way)}.json"
        trained[way] = kept(place, lambda way=way: train(args.model, streets(), way, args.seed))
    labels = kept(cache / "labels.json", lambda: measure_labels(args.model, streets()))
    PAGE.write_text(page(labels, trained, f"python docs/make_prior_study.py --seed {args.seed}"), encoding="utf-8")
    print(PAGE.relative_to(ROOT))


if __name__ == "__main__":
    main()
