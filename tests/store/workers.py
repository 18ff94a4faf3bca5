"""What other processes of the store's tests run. Its own module, so that spawned processes can import it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from tests.store.cases import NAMES, THRESHOLDS, joined, open_store, pseudo


class Writes(Dataset):
    """Labels the images it is asked for, in whatever process that happens."""

    def __init__(self, writer, names):
        self.writer, self.names = writer, names

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        self.writer.add([self.names[i]], pseudo(self.names[i]))
        return os.getpid()


def by_loader(writer, names, context):
    loader = DataLoader(Writes(writer, names), batch_size=None, num_workers=2, multiprocessing_context=context)
    return set(loader)


def half(index: int, root: str) -> None:
    """One of two processes that know nothing of each other."""
    torch.set_num_threads(1)
    with open_store(Path(root)).write(0, NAMES, thresholds=THRESHOLDS, portion=0.2, rank=index) as writer:
        for name in NAMES[index::2]:
            writer.add([name], pseudo(name))


def rank(index: int, port: int, root: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=index, world_size=2)
    assert dist.get_world_size() == 2
    store, result = open_store(Path(root)), {}

    with store.write(0, NAMES, thresholds=THRESHOLDS, portion=0.2) as writer:  # was interrupted
        result["missing"] = writer.missing()
        mine = writer.missing()[index::2]
        result["workers"] = len(by_loader(writer, mine, "fork"))
        result["rounds while writing"] = store.rounds()
        result["names"] = writer.finish().names
    result["again"] = store.write(0, NAMES, thresholds=THRESHOLDS, portion=0.2).missing()

    try:
        store.write(0, NAMES, thresholds=THRESHOLDS - 1e-9 * index, portion=0.2)
    except (ValueError, RuntimeError) as error:
        result["other thresholds"] = (type(error).__name__, str(error))
    try:
        store.write(1, NAMES if index == 0 else ["../x"])
    except (ValueError, RuntimeError) as error:
        result["bad name"] = (type(error).__name__, str(error))

    with store.write(2, NAMES, overwrite=True) as writer:  # was complete, with other images
        if index == 1:
            writer.add(NAMES[:2], joined(NAMES[:2]))
    try:
        writer.finish()
    except RuntimeError as error:
        result["incomplete"] = str(error)
    result["interrupted"] = store.interrupted()
    result["pruned"] = store.prune(keep=1)
    store.delete(2)
    result["left"] = (store.rounds(), store.interrupted())
    torch.save(result, Path(root) / f"rank{index}.pt")
    dist.barrier()
    dist.destroy_process_group()


def until_killed(root: str) -> None:
    with open_store(Path(root)).write(0, NAMES, thresholds=THRESHOLDS, portion=0.2) as writer:
        for start in range(0, len(NAMES), 2):
            writer.add(NAMES[start : start + 2], joined(NAMES[start : start + 2]))
            time.sleep(0.05)
        time.sleep(600)


if __name__ == "__main__":
    torch.set_num_threads(1)
    until_killed(sys.argv[1])
