"""Kill short runs of three trainers at random moments, again and again, and compare what they end in.

``python -m tests.soak --kills 60`` takes about half an hour on two cores; it is no part of the suite. A run that
nothing interrupts comes first, on one process and on two. Then others are killed without warning (SIGKILL) once to
three times, a moment after a random number of files, all processes at once or one before the others, and started
again until they end. After each
kill every finished round must be whole; at the end labels, network and result must be those of the first run, to the
bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from itertools import cycle
from pathlib import Path

import torch

from selftrain_seg.store import PseudoLabelStore
from tests.examples import trainers

CLASSES = 13
SMALL = ["--smoke", "--images", 8, 6, 4, "--batch", 2, "--checkpoint-every", 2]
SCRIPTS = {
    "cbst.py": [*SMALL, "--rounds", 2, "--steps", 5],
    "crst.py": [*SMALL, "--rounds", 2, "--steps", 5, "--regularizer", "lrent"],
    "dtst.py": [*SMALL, "--steps", 11, "--refresh", 4],
}


def end(ranks: list, log: Path) -> None:
    """Wait until all have ended well."""
    until = time.monotonic() + trainers.LIMIT
    for process in ranks:
        process.join(max(1.0, until - time.monotonic()))
    failed = [process.exitcode for process in ranks if process.exitcode != 0]
    for process in ranks:
        if process.is_alive():
            process.kill()
    if failed:
        raise SystemExit(f"exit status {failed}:\n{log.read_text(encoding='utf-8')}")


def kill(ranks: list, out: Path, files: int, later: float, apart: float) -> bool:
    """Kill all ranks a moment after so many new files, the first before the others; False if all had ended."""
    before, seen = everything(out), set()
    while len(seen) < files and any(process.is_alive() for process in ranks):
        seen |= everything(out) - before
        time.sleep(0.002)
    time.sleep(later)
    working = any(process.is_alive() for process in ranks)
    for process in ranks:
        process.kill()
        time.sleep(apart)
    for process in ranks:
        process.join()
    return working


def everything(folder: Path) -> set[Path]:
    """All files and folders; a checkpoint may vanish while they are listed."""
    return {Path(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files)}


def damage(out: Path) -> list[str]:
    """Files of finished rounds that are not what the round's manifest says."""
    stores = [PseudoLabelStore(folder, CLASSES) for folder in out.glob("pseudo-labels*")]
    return [path for store in stores for round in store.rounds() for path in store.verify(round)]


def outcome(out: Path) -> dict[str, object]:
    """What a run ends in: the bytes of its labels and their lists, its network, its numbers."""
    paths = [path for pattern in ("*.png", "images.jsonl") for path in out.glob(f"pseudo-labels*/**/{pattern}")]
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}
    weights = torch.load(out / "model.pt", weights_only=True)
    network = {name: tensor.numpy().tobytes() for name, tensor in weights.items()}
    return {"labels": files, "network": network, "result": json.dumps(trainers.result(out))}


def differences(one: dict[str, object], other: dict[str, object]) -> list[str]:
    return [name for name, value in one.items() if value != other[name]]


def last_step(out: Path) -> str:
    """Where a run was when it was killed: how many labels, and the last checkpoint."""
    labels = len(list(out.glob("pseudo-labels*/round-*/labels/**/*.png")))
    steps = sorted(path.name for path in (out / "checkpoints").glob("[!.]*")) if out.exists() else []
    return f"with {labels} labels after {steps[-1] if steps else 'no step'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scripts", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    generator = random.Random(args.seed)  # noqa: S311
    with tempfile.TemporaryDirectory() as folder:
        root, log = Path(folder), Path(folder) / "log.txt"
        data = ["--root", root / "streets"]
        end(trainers.start_ranks("source_only.py", root / "source", [*SMALL, *data, "--steps", 20], log), log)
        data += ["--init", root / "source" / "model.pt"]
        kinds = {}
        for script in args.scripts:
            for processes in args.processes:
                out, began = root / f"whole-{script}-{processes}", time.monotonic()
                end(trainers.start_ranks(script, out, [*SCRIPTS[script], *data], log, processes), log)
                kinds[script, processes] = (outcome(out), len(everything(out)))
                print(f"{script} on {processes}: {time.monotonic() - began:.0f} s", flush=True)
        done = bad = 0
        for number, (script, processes) in enumerate(cycle(kinds)):
            if done >= args.kills:
                break
            whole, files = kinds[script, processes]
            out = root / f"killed-{number}"
            options, moments, problems = [*SCRIPTS[script], *data], [], []
            for _ in range(min(generator.randint(1, 3), args.kills - done)):
                left = max(1, files - len(everything(out)))
                moment = (generator.randint(0, left), generator.uniform(0, 0.1), generator.choice([0.0, 0.1]))
                if kill(trainers.start_ranks(script, out, options, log, processes), out, *moment):
                    moments.append(last_step(out))
                problems += damage(out)
            end(trainers.start_ranks(script, out, options, log, processes), log)
            problems += damage(out) + differences(whole, outcome(out))
            done, bad = done + len(moments), bad + bool(problems)
            ending = f"differs in {problems}" if problems else "the same"
            print(f"{done:3d} {script} on {processes}, killed {', '.join(moments) or 'too late'}: {ending}", flush=True)
    print(f"{done} kills, {bad} runs that ended otherwise or were damaged")
    raise SystemExit(bad > 0)


if __name__ == "__main__":
    main()
