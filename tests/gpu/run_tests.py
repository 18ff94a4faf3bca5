"""The tests marked ``gpu``, in several processes at once, for a given time at most."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE = 10  # seconds in which pytest must end when asked to


def gpu_files() -> list[str]:
    """Files with a test marked ``gpu``: the others, some of which need more libraries, are not even imported."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if "mark.gpu" in path.read_text(encoding="utf-8")]


def with_xdist() -> bool:
    return importlib.util.find_spec("xdist") is not None


def commands(files: Sequence[str], jobs: int, report: Path, xdist: bool) -> list[list[str]]:
    """One command for xdist, or else one a process."""
    base = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        "pyproject.toml",
        *files,
        "-m",
        "gpu",
        "-p",
        "tests.gpu.plugin",
        "--tb=short",
        "-rfE",
    ]
    # Without the plugin of pytest-benchmark: beside xdist it warns, and warnings are errors.
    base += ["--continue-on-collection-errors", "-p", "no:cacheprovider", "-p", "no:benchmark", "--report-to"]
    if xdist:
        return [[*base, f"{report}.0", "-n", str(jobs), "--dist", "worksteal"]]
    return [[*base, f"{report}.{job}", "--shard", f"{job}/{jobs}", "-p", "no:xdist"] for job in range(jobs)]


def run(files: Sequence[str], *, jobs: int, seconds: float, log: Path | None = None) -> dict[str, Any]:
    """Run the tests; the counts of what passed, failed, was skipped and was not run, and why.

    Args:
        files: to collect from.
        jobs: processes.
        seconds: after which tests that still run are stopped.
        log: where pytest's own output goes.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, open(log or os.devnull, "wb") as output:
        report = Path(folder) / "report"
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        processes = [
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True)
            for command in commands(files, jobs, report, with_xdist())
        ]
        try:
            with ThreadPoolExecutor(len(processes)) as pool:  # all are asked to end at the same time
                ended = list(pool.map(lambda process: wait(process, start + seconds), processes))
        finally:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        lines = [
            json.loads(line)
            for path in sorted(Path(folder).iterdir())
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
    return summary(lines, ended, time.monotonic() - start)


def wait(process: subprocess.Popen[bytes], until: float) -> int | None:
    """Its exit status; None where it had to be stopped: first asked, so that pytest ends in order, then killed."""
    given = max(until - time.monotonic(), 0)
    for signals, patience in ((None, given), (signal.SIGINT, PATIENCE), (signal.SIGKILL, 60)):
        if signals is not None:
            os.killpg(process.pid, signals)
        try:
            status = process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        return status if signals is None else None
    return None


def summary(lines: Sequence[dict[str, Any]], ended: Sequence[int | None], seconds: float) -> dict[str, Any]:
    """What the lines of all processes say about each test, and what the processes say that ended badly."""
    last: dict[str, dict[str, Any]] = {}
    for line in lines:
        if last.get(line["test"], {}).get("outcome") != "failed":  # in the test or after it
            last[line["test"]] = line
    outcomes = Counter(line["outcome"] for line in last.values())
    failures = [f"{name}: {line['why']}" for name, line in last.items() if line["outcome"] == "failed"]
    # 0: passed, 1: some failed, 2: interrupted by an error at collection, 5: none in this share.
    failures += [f"a process of pytest ended with {code}" for code in ended if code not in (0, 1, 2, 5, None)]
    if not last and not failures:
        failures.append("no test was found")
    return {
        "passed": outcomes["passed"],
        "failed": len(failures),
        "skipped": outcomes["skipped"],
        "not run": outcomes["collected"],
        "seconds": round(seconds, 1),
        "stopped": any(code is None for code in ended),
        "failures": failures,
        "why skipped": dict(Counter(line["why"] for line in last.values() if line["outcome"] == "skipped")),
        "slowest": sorted(((line.get("seconds", 0), name) for name, line in last.items()), reverse=True)[:5],
    }


def headline(result: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{result[name]} {name}" for name in ("passed", "failed", "skipped", "not run"))
    return f"GPU tests: {counts} in {result['seconds']:.0f} s" + ", stopped: out of time" * result["stopped"]


def text(result: Mapping[str, Any]) -> str:
    lines = [headline(result)]
    lines += [f"  failed: {failure}" for failure in result["failures"]]
    lines += [f"  skipped {count}: {why}" for why, count in result["why skipped"].items()]
    return "\n".join(lines)
