"""Run the benchmarks on the CPU: ``python -m tests.benchmarks [losses ...] [--compile] [--markdown FILE]``.

Each script runs in a process of its own: what the allocator has kept from earlier ones decides whether fresh memory
must be paged in, which can double the time of an operation that only copies.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that counts allocations is talkative

import torch

from tests.benchmarks import _harness


def main() -> int:
    available = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which to run (default: all): {', '.join(available)}")
    parser.add_argument("--rounds", type=int, default=9, help="how often every version runs (default: 9)")
    parser.add_argument("--json", type=Path, help="also write results, versions and hardware to this file")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile of ours, too: a minute more")
    parser.add_argument("--markdown", type=Path, help="also write the tables to the CPU half of this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a promise or a target is missed")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(available)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")

    torch.set_num_threads(1)
    names = arguments.names or available
    before = _harness.environment()
    report = _harness.Report(compile=arguments.compile)
    for name in names:
        print(name, file=sys.stderr, flush=True)
        if len(names) == 1:
            importlib.import_module(f"tests.benchmarks.bench_{name}").run(report, rounds=arguments.rounds)
        else:
            report.extend(_in_own_process(name, arguments))
        if arguments.json:  # after each one: they take minutes
            results = {"environment": before, "rounds": arguments.rounds, **report.as_dict()}
            arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        if arguments.markdown:
            _harness.write_half(arguments.markdown, "CPU", report.markdown(before, arguments.rounds))
    print(report.table())
    print()
    print(", ".join(f"{key} {value}" for key, value in before.items()))
    missed = any(target.missed for target in report.targets) or not all(check.kept for check in report.checks)
    return int(arguments.check and missed)


def _in_own_process(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        command = [sys.executable, "-m", "tests.benchmarks", name, "--rounds", str(arguments.rounds), "--json", file]
        subprocess.run(command + ["--compile"] * arguments.compile, check=True, stdout=subprocess.DEVNULL)
        return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
