"""What each rank of the distributed tests runs. Its own module, so that spawned processes can import it."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist

from selftrain_seg.confidence import SpatialPrior
from selftrain_seg.distributed import all_reduce_sum
from selftrain_seg.selectors import (
    FlexMatchSelector,
    FreeMatchSelector,
    InstanceAdaptiveSelector,
    RunningConfidenceSelector,
    SelectionStatistics,
    SoftMatchSelector,
    select_hard,
)
from selftrain_seg.thresholds import ClassBalancedThreshold, ConfidenceSketch, GlobalThreshold
from tests.helpers import random_logits

CLASSES = 4
IMAGES = 7


def data() -> torch.Tensor:
    return random_logits(IMAGES, CLASSES, 12, 10)


def labels() -> torch.Tensor:
    return torch.randint(0, CLASSES, (IMAGES, 12, 10), generator=torch.Generator().manual_seed(3))


def prior_map() -> torch.Tensor:
    return 0.5 + torch.rand(CLASSES, 12, 10, generator=torch.Generator().manual_seed(4))


def adaptive_selectors() -> dict[str, torch.nn.Module]:
    return {
        "running": RunningConfidenceSelector(CLASSES),
        "freematch": FreeMatchSelector(CLASSES, momentum=0.9),
        "flexmatch": FlexMatchSelector(CLASSES, momentum=0.9),
        "softmatch": SoftMatchSelector(CLASSES, momentum=0.9, align=True),
    }


def statistics(logits: torch.Tensor, truth: torch.Tensor) -> dict[str, torch.Tensor]:
    """Everything that crosses ranks, over this rank's images, in batches of one."""
    out = {}
    for name, estimator in {
        "balanced": ClassBalancedThreshold(CLASSES, 0.3),
        "all": ClassBalancedThreshold(CLASSES, torch.tensor([0.1, 0.2, 0.3, 0.4]), pool="all"),
        "global": GlobalThreshold(CLASSES, 0.3),
        "under a prior": ClassBalancedThreshold(CLASSES, 0.3, prior=prior_map()),
        "global under a prior": GlobalThreshold(CLASSES, 0.3, prior=prior_map()),
    }.items():
        for image in logits.split(1) if len(logits) else ():
            estimator.update(image, valid=image[:, 0] < 1.0)
        out[name], out[name + "_counts"] = estimator.compute(), estimator.class_counts()
    sketch = ConfidenceSketch(CLASSES)
    sketch.update(logits.flatten(), torch.arange(logits.numel()) % CLASSES)
    out["quantile"], out["cdf"] = sketch.quantile(0.7), sketch.cdf(torch.tensor(1.0))

    prior = SpatialPrior(CLASSES, (6, 5), sigma_px=0)
    prior.update(truth)
    out["prior"] = prior.compute()

    selected = SelectionStatistics(CLASSES)
    for image, target in zip(logits.split(1), truth.split(1), strict=True) if len(logits) else ():
        selected.update(select_hard(image, torch.full((CLASSES,), 0.6)), target)
    for name, value in selected.compute()._asdict().items():
        out[f"selected_{name}"] = value
    return out


def adaptive(steps: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """State after the steps of the selectors whose statistics are sums."""
    out = {}
    for name, selector in adaptive_selectors().items():
        for step in steps:
            selector(step)
        out |= {f"{name}.{key}": value for key, value in selector.state_dict().items()}
    return out


def instance_adaptive(steps: list[torch.Tensor]) -> list[torch.Tensor]:
    selector, history = InstanceAdaptiveSelector(CLASSES), []
    for step in steps:
        selector(step)
        history.append(selector.thresholds.clone())
    return history


def run(rank: int, shards: list[list[int]], port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=len(shards))
    assert dist.get_world_size() == len(shards)
    mine, logits = shards[rank], data()
    total = all_reduce_sum(torch.tensor([rank + 1]))
    steps = [logits[mine], logits[mine[:1]], logits[mine[1:]]]
    result = {
        "total": total,
        "statistics": statistics(logits[mine], labels()[mine]),
        "adaptive": adaptive(steps),
        "instance": instance_adaptive(steps),
    }
    try:
        exact = ClassBalancedThreshold(CLASSES, 0.3, exact=True)
        exact.update(logits)
        exact.compute()
    except ValueError as error:
        result["exact"] = str(error)
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
