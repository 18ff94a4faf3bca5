"""Run the trainers as people do: in processes of their own, killed at any moment, on several ranks."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


def environment() -> dict[str, str]:
    # Matplotlib's and torch's caches must not decide whether a test passes.
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent), "MPLBACKEND": "agg"}


def command(script: str, out: Path, *options: object, processes: int = 1) -> list[str]:
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*start, str(EXAMPLES / script), "--out", str(out), *map(str, options)]


def run(script: str, out: Path, *options: object, processes: int = 1) -> str:
    """Run to the end; the output is shown if it fails."""
    words = command(script, out, *options, processes=processes)
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def run_and_kill(
    script: str, out: Path, *options: object, wait_for: str, seed: int, files: int = 1, within: float = 0.5
) -> None:
    """Start, wait until so many files of this pattern are there and a random moment longer, kill without warning."""
    with subprocess.Popen(
        command(script, out, *options), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while len(list(out.glob(wait_for))) < files:
            assert process.poll() is None, f"ended before {files} {wait_for} were there"
            time.sleep(0.002)
        time.sleep(random.Random(seed).uniform(0, within))  # noqa: S311
        process.send_signal(signal.SIGKILL)


def result(out: Path) -> dict[str, object]:
    """``result.json`` without what differs from run to run."""
    found = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if key not in ("seconds", "peak_memory_mb")}


def assert_same_network(first: Path, second: Path) -> None:
    one, other = (torch.load(out / "model.pt", weights_only=True) for out in (first, second))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
