"""What each rank of the tests of BatchNorm's statistics runs."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from selftrain_seg.batchnorm import add_domain, estimate_statistics, get_statistics, use_domain
from selftrain_seg.restyle import restyled_confusion
from tests.batchnorm.nets import target, trained

BATCHES = 5


def batches() -> list[torch.Tensor]:
    return target((2, 1, 3, 1, 2))


def pairs() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [(images, torch.randint(0, 5, images[:, 0].shape, generator=generator)) for images in batches()]


def own_style(images: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    return images + 0.1


def measured(net: nn.Module, places: list[int]) -> dict[str, torch.Tensor]:
    """Statistics over some of the batches, by one pass and by three; and counts on restyled images."""
    found = {}
    for passes in (1, 3):
        statistics = estimate_statistics(net, [batches()[place] for place in places], passes=passes)
        found |= {f"{passes} {name}": tensor for name, tensor in statistics.items()}
    source = [pairs()[place] for place in places]
    found["counts"] = restyled_confusion(net, source, batches(), num_classes=5, restyle=own_style).counts
    return found


def fails(images: list[torch.Tensor]):
    yield from images
    raise OSError("a file is gone")


def run(rank: int, shards: list[list[int]], port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=len(shards))
    net = trained(dropout=0.0)
    result: dict[str, object] = {"plain": measured(net, shards[rank])}
    # Wrapped in what would talk to the other ranks at each step, of which there are not as many on all.
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(trained(dropout=0.0))
    for name, wrapped in (("synced", synced), ("parallel", DistributedDataParallel(trained(dropout=0.0)))):
        found = estimate_statistics(wrapped.train(), [batches()[place] for place in shards[rank]])
        result[name] = {f"1 {entry}": tensor for entry, tensor in found.items()}
    before = get_statistics(net)
    try:
        estimate_statistics(net, fails(batches()) if rank == 0 else batches())
    except (OSError, RuntimeError) as error:
        result["error"] = f"{type(error).__name__}: {error}"
    result["unchanged"] = all(torch.equal(before[name], tensor) for name, tensor in get_statistics(net).items())
    result["domains"] = trained_by_domain(rank)
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def trained_by_domain(rank: int) -> dict[str, torch.Tensor]:
    """State after some steps of ``DistributedDataParallel`` with a domain each; the ranks' images differ."""
    net = trained(dropout=0.0)
    add_domain(net, "target")
    parallel = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(3):
        for domain in (None, "target"):
            with use_domain(parallel, domain):
                parallel(target((2,), seed=10 * step + rank + (domain is None))[0]).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
    with use_domain(parallel, "target"):
        parallel(target((2,))[0])  # sends the buffers along once more, of both domains
    return {name: tensor.clone() for name, tensor in net.state_dict().items() if "running" not in name} | {
        f"own {name}": tensor for name, tensor in get_statistics(parallel).items()
    }
