"""What each of two ranks runs to train, save and load what it has counted. Its own module, to be spawned."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from selftrain_seg._state import Stateful
from selftrain_seg.selectors import FreeMatchSelector, SelectionStatistics
from selftrain_seg.thresholds import ClassBalancedThreshold, GlobalThreshold
from tests.helpers import random_logits
from tests.stateful import KINDS, states

CLASSES, RANKS, STEPS, SIDE = 4, 2, 3, 16
ADDED = ("balanced", "balanced, prior", "global", "sketch", "spatial prior", "statistics", "agreement")
ADDED += ("agreement of classes", "precision")


def logits_of(step: int, rank: int) -> Tensor:
    return random_logits(1, CLASSES, SIDE, SIDE, seed=10 * step + rank)


def target_of(step: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randint(0, CLASSES, (1, SIDE, SIDE), generator=generator)


def batch_of(step: int, ranks: list[int]) -> tuple[Tensor, Tensor]:
    return (
        torch.cat([logits_of(step, rank) for rank in ranks]),
        torch.cat([target_of(step, rank) for rank in ranks]),
    )


class Trained(nn.Module):
    """A network with everything that counts inside it, as users put it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(CLASSES, CLASSES, 1), nn.BatchNorm2d(CLASSES))
        self.statistics = SelectionStatistics(CLASSES)
        self.kc = ClassBalancedThreshold(CLASSES, 0.3, prior=0.5 + torch.rand(CLASSES, SIDE, SIDE).round(decimals=1))
        self.selector = FreeMatchSelector(CLASSES, momentum=0.5)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        pseudo = self.selector(logits)
        self.kc.update(logits)
        self.statistics.update(pseudo, target)
        return self.net(logits)


def train(ranks: list[int], *, wrap: bool) -> Trained:
    torch.manual_seed(0)
    model = Trained()
    network = DistributedDataParallel(model) if wrap else model  # which broadcasts rank 0's buffers at every forward
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for step in range(STEPS):
        logits, target = batch_of(step, ranks)
        loss = nn.functional.cross_entropy(network(logits, target), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def figures(model: Trained) -> dict[str, Tensor]:
    """All that crosses ranks: a collective."""
    return {
        "thresholds": model.kc.compute(),
        "class_counts": model.kc.class_counts(),
        **model.statistics.compute()._asdict(),
        **{name: value.clone() for name, value in model.selector.state_dict().items()},
    }


def feed(name: str, module: Stateful, ranks: list[int], steps: range) -> None:
    for step in steps:
        for rank in ranks:
            KINDS[name].feed(module, random_logits(2, CLASSES, 6, 5, seed=100 + 10 * step + rank))


def totals(module: Stateful) -> dict[str, Tensor]:
    """Every state summed over ranks: a collective."""
    return {
        f"{prefix}.{name}": value
        for prefix, part in module.named_modules()
        if isinstance(part, Stateful)
        for name, value in zip(part._defaults, part.reduced(*part._defaults), strict=True)
    }


def load(module: Stateful, saved: dict[str, Any]) -> str:
    try:
        module.load_state_dict(saved)
    except ValueError as error:
        return str(error)
    return "loaded"


def checkpoints(rank: int, name: str, folder: Path) -> dict[str, Any]:
    module, out = KINDS[name].make(), {}
    feed(name, module, [rank], range(2))
    out["total"] = totals(module)
    torch.save(module.state_dict(), folder / f"{name}, {rank}.pt")
    dist.barrier()

    own = KINDS[name].make()
    out["own"] = load(own, torch.load(folder / f"{name}, {rank}.pt", weights_only=True)), totals(own)
    feed(name, own, [rank], range(2, 3))  # and goes on
    out["own, later"] = totals(own)

    first = KINDS[name].make()
    feed(name, first, [rank], range(4, 5))
    before = states(first)
    out["rank 0's"] = load(first, torch.load(folder / f"{name}, 0.pt", weights_only=True))
    out["unchanged"] = all(torch.equal(value, before[key]) for key, value in states(first).items())

    alone = KINDS[name].make()
    feed(name, alone, [rank], range(4, 5))  # is replaced, on rank 1 by nothing
    out["alone"] = load(alone, torch.load(folder / f"{name}, alone.pt", weights_only=True)), totals(alone)
    feed(name, alone, [rank], range(2, 3))
    out["alone, later"] = totals(alone)

    more = copy.deepcopy(module.state_dict())
    more["saved_by"] = torch.tensor([rank, 3])
    out["of three"] = load(KINDS[name].make(), more)
    return out


def sizes_of_collectives() -> dict[str, list[tuple[str, int]]]:
    """What goes to ``torch.distributed.all_reduce``, call by call."""
    calls: list[tuple[str, int]] = []
    whole = dist.all_reduce

    def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append((str(tensor.dtype), tensor.numel()))
        return whole(tensor, *args, **kwargs)

    kc, pooled = ClassBalancedThreshold(CLASSES, 0.3), GlobalThreshold(CLASSES, 0.3)
    statistics = SelectionStatistics(CLASSES)
    for estimator in (kc, pooled):
        estimator.update(logits_of(0, 0))
    mixed = Stateful()
    mixed.add_state("a", torch.ones(3), over_ranks="sum")
    mixed.add_state("b", torch.ones(2, 2), over_ranks="sum")
    mixed.add_state("d", torch.tensor([7, dist.get_rank()]), over_ranks="sum")
    mixed.add_state("e", torch.tensor(dist.get_rank()))
    out = {}
    dist.all_reduce = counted
    try:
        for name, work in {
            "class_counts": kc.class_counts,
            "pooled class_counts": pooled.class_counts,
            "sketch class_counts": kc.sketch.class_counts,
            "compute": kc.compute,
            "statistics": statistics.compute,
            "mixed": lambda: out.update({"values": [v.tolist() for v in mixed.reduced("e", "d", "b", "a")]}),
            "update": lambda: kc.update(logits_of(1, 0)),
        }.items():
            calls.clear()
            work()
            out[name] = list(calls)
    finally:
        dist.all_reduce = whole
    return out


def without_data(rank: int) -> dict[str, Any]:
    """Rank 1 never updates: it has no images this epoch."""
    out = {}
    for name in ADDED:
        module = KINDS[name].make()
        if rank == 0:
            feed(name, module, [0], range(2))
        computed = module.total() if name == "sketch" else module.compute()
        out[name] = list(computed) if isinstance(computed, tuple) else [computed]
    return out


def run(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    assert dist.get_world_size() == RANKS
    result = {
        "trained": figures(train([rank], wrap=True)),
        "checkpoints": {name: checkpoints(rank, name, Path(folder)) for name in ADDED},
        "sizes": sizes_of_collectives(),
        "without data": without_data(rank),
    }
    torch.save(result, Path(folder) / f"result{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
