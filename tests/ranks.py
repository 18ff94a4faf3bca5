"""Start the ranks of a real process group, without importing torch anew in each of them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp

from tests.examples import trainers  # noqa: F401, which tells the fork server of all tests what to import


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(function: Callable[..., None], *arguments: Any, ranks: int, join: bool = True) -> mp.ProcessContext | None:
    """Call ``function(rank, *arguments)`` in each rank; it raises what a rank raises."""
    return mp.start_processes(function, args=arguments, nprocs=ranks, join=join, start_method="forkserver")
