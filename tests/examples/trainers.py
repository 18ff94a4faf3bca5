"""Run the trainers in processes of their own, killed at any moment, on several ranks; as people do, or sooner."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path

import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
LIMIT = 600  # seconds

# Most of a short run would go into importing these. They are imported once, by a process that then forks for each run;
# scripts, what they share and the package are imported anew.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        *("kornia.augmentation", "matplotlib.figure", "matplotlib.backends.backend_agg", "torch._dynamo"),
        *("torch.utils.tensorboard", "torchmetrics.classification", "torchvision.transforms.v2"),
        *("accelerate", "tyro"),
    ]
)


def environment() -> dict[str, str]:
    # Matplotlib's and torch's caches must not decide whether a test passes.
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent), "MPLBACKEND": "agg"}


def run_as_people_do(script: str, out: Path, *options: object, processes: int = 1) -> str:
    """Run to the end by the command that one would type; the output is shown if it fails."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    words = [*start, str(EXAMPLES / script), "--out", str(out), *map(str, options)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def run(script: str, out: Path, *options: object, processes: int = 1) -> str:
    """Do the same in processes that need not import everything."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        left = start_ranks(script, out, options, log, processes)
        until, failed = time.monotonic() + LIMIT, False
        while left and not failed and time.monotonic() < until:
            ended = wait([process.sentinel for process in left], timeout=1)
            for process in [process for process in left if process.sentinel in ended]:
                process.join()
                left.remove(process)
                failed |= process.exitcode != 0
        for process in left:  # the other ranks would wait for the one that failed
            process.kill()
            process.join()
        output = log.read_text(encoding="utf-8")
        assert not failed, output
        assert not left, f"not done after {LIMIT} s: {output}"
        return output


def run_and_kill(
    script: str,
    out: Path,
    *options: object,
    wait_for: str,
    seed: int,
    files: int = 1,
    within: float = 0.5,
    processes: int = 1,
) -> None:
    """Start, wait until so many files of this pattern are there and a random moment longer, kill without warning."""
    ranks = start_ranks(script, out, options, Path(os.devnull), processes)
    try:
        while len(list(out.glob(wait_for))) < files:
            assert all(rank.is_alive() for rank in ranks), f"ended before {files} {wait_for} were there"
            time.sleep(0.002)
        time.sleep(random.Random(seed).uniform(0, within))  # noqa: S311
    finally:
        for rank in ranks:
            rank.kill()
        for rank in ranks:
            rank.join()


def start_ranks(script: str, out: Path, options: Sequence[object], log: Path, processes: int = 1) -> list:
    """Start the processes of a run, as torchrun does."""
    from tests.distributed.test_ranks import free_port  # the processes import this file, but not pytest

    if processes == 1:
        return [_start(script, out, options, log, {})]
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return [_start(script, out, options, log, rank) for rank in ranks]


def _start(script: str, out: Path, options: Sequence[object], log: Path, rank: dict[str, str]):
    words = [str(EXAMPLES / script), "--out", str(out), *map(str, options)]
    process = _SERVER.Process(target=_script, args=(words, log, {**environment(), **rank}))
    process.start()
    return process


def _script(words: list[str], log: Path, variables: dict[str, str]) -> None:
    """What ``python`` does with a script and its arguments."""
    with open(log, "ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.clear()
    os.environ.update(variables)
    multiprocessing.set_start_method(None, force=True)  # for what the script starts: Python's default, as ever
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")


def source_run(folder: Path) -> list[object]:
    """Train a source model on small exported folders; returns options for short runs that start from it."""
    run("source_only.py", folder / "out", "--smoke", "--steps", 21, "--root", folder / "streets")
    return ["--smoke", "--root", folder / "streets", "--init", folder / "out" / "model.pt", "--batch", 2]


def result(out: Path) -> dict[str, object]:
    """``result.json`` without what differs from run to run."""
    found = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if key not in ("seconds", "peak_memory_mb")}


def assert_same_network(first: Path, second: Path) -> None:
    one, other = (torch.load(out / "model.pt", weights_only=True) for out in (first, second))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
