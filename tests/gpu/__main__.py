"""Prove it on a GPU: ``python -m tests.gpu [--json FILE] [--markdown FILE]``, under five minutes, nothing to download.

First the tests that need a GPU, in several processes at once, while others compile what will be measured; then a
training step and the table of operations, alone on the device. What time does not allow for is left out and named.
Beside PyTorch with CUDA it takes the libraries of ``selftrain_seg`` and pytest.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import _harness
from tests.gpu import cases, run_tests, table
from tests.gpu.cases import Row
from tests.gpu.child import AGAIN, STEPS

# In the environment at import: with kernels, and without ("plain path").
SWITCH = {False: {"SELFTRAIN_SEG_KERNELS": ""}, True: {"SELFTRAIN_SEG_KERNELS": "0"}}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--seconds", type=float, default=285, help="for all together (default: 285)")
    parser.add_argument("--tests-seconds", type=float, default=140, help="of these for the tests (default: 140)")
    parser.add_argument("--jobs", type=int, default=max(2, min(8, (os.cpu_count() or 2) // 2)), help="processes")
    parser.add_argument("--files", nargs="*", help="files of tests (default: all with tests marked gpu)")
    parser.add_argument("--only", nargs="*", choices=("tests", "step", "table"), help="parts (default: all)")
    parser.add_argument("--operations", nargs="*", help="operations of the table (default: all)")
    parser.add_argument("--full", action="store_true", help="all dtypes and layouts of everything; takes longer")
    parser.add_argument("--json", type=Path, help="also write all results to this file")
    parser.add_argument("--markdown", type=Path, help="also write the tables to the GPU half of this file")
    parser.add_argument("--log", type=Path, help="write pytest's output to this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed, too")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: with --smoke only")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: shows that it works, measures nothing")
    options = parser.parse_args(arguments)
    unknown = set(options.operations or ()) - set(cases.OPERATIONS)
    if unknown:
        parser.error(f"no such operation: {', '.join(sorted(unknown))}")
    if options.device == "cpu" and not options.smoke:
        parser.error("--device cpu measures nothing: say so with --smoke")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here; --device cpu --smoke walks through all but its timing")
    return options


def child(keys: Sequence[str], options: argparse.Namespace, seconds: float, *more: str, **environment: str) -> Any:
    """The rows that one process wrote, by key; its exit status, None where it was stopped; what it said last."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **environment}
    with tempfile.TemporaryDirectory() as folder:
        file, errors = Path(folder) / "rows.json", Path(folder) / "errors.txt"
        command = [sys.executable, "-m", "tests.gpu.child", file, *keys, "--device", options.device, *more]
        with errors.open("wb") as output:
            process = subprocess.Popen(
                [*command, *["--smoke"] * options.smoke],
                cwd=run_tests.ROOT,
                env=environment,
                stdout=output,
                stderr=output,
            )
            try:
                status: int | None = process.wait(max(seconds, 0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                status = None
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        said = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    return {row["key"]: row for row in map(json.loads, lines)}, status, said


def rows_of(
    keys: Sequence[str], options: argparse.Namespace, until: float, *more: str, **environment: str
) -> dict[str, Any]:
    """Measure rows; one that fails says why, and does not keep the others from being measured."""
    rows: dict[str, Any] = {}
    todo = list(keys)
    while todo:
        found, status, said = child(todo, options, until - time.monotonic(), *more, **environment)
        rows |= found
        todo = [key for key in todo if key not in rows]
        if status is None:
            break
        if todo and (status != AGAIN or not found):
            rows[todo.pop(0)] = {"error": f"its process ended with {status}: {' '.join(said)}"[:500]}
    return rows | {key: {"error": table.OUT_OF_TIME} for key in todo}


def count_all(keys: Sequence[str], options: argparse.Namespace, until: float) -> dict[str, Any]:
    """Count the launches of rows in several processes, and so compile what will be measured; failures show up later."""
    by_path = {path: [key for key in keys if (Row.parse(key).version == "plain path") == path] for path in SWITCH}
    shares = [(by_path[False][job :: options.jobs], False) for job in range(options.jobs)] + [(by_path[True], True)]

    def count(share: tuple[list[str], bool]) -> dict[str, Any]:
        return rows_of(share[0], options, until, "--count", **SWITCH[share[1]])

    with ThreadPoolExecutor(len(shares)) as pool:
        counted = [item for found in pool.map(count, shares) for item in found.items()]
    return {key: row["launches"] for key, row in counted if "launches" in row}


def about() -> dict[str, Any]:
    found = _harness.environment()
    with_triton = importlib.util.find_spec("triton") is not None
    return {
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "CUDA": torch.version.cuda,
        "triton": importlib.import_module("triton").__version__ if with_triton else None,
        **{name: found[name] for name in ("torch", "python", "system", "cpu", "cores")},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    options, start = parse(arguments), time.monotonic()
    parts = options.only or ("tests", "step", "table")
    until = start + options.seconds
    rows = cases.rows(full=options.full, smoke=options.smoke)
    rows = [row for row in rows if not options.operations or row.operation in options.operations]
    keys = [row.key for row in rows] if "table" in parts else []
    results: dict[str, Any] = {"smoke": options.smoke, "about": about()}
    if options.smoke:
        print(table.SMOKE)

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:4.0f} s] {text}", flush=True)

    def save() -> None:  # after each part: the next may not end
        results["seconds"] = round(time.monotonic() - start, 1)
        if options.json:
            options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        if options.markdown:
            _harness.write_half(options.markdown, "GPU", table.markdown(results))

    with ThreadPoolExecutor(1) as pool:  # beside the tests
        counting = pool.submit(count_all, keys, options, min(start + options.tests_seconds, until))
        if "tests" in parts:
            files = options.files or run_tests.gpu_files()
            say(f"tests of {len(files)} files in {options.jobs} processes")
            results["tests"] = run_tests.run(files, jobs=options.jobs, seconds=options.tests_seconds, log=options.log)
            say(run_tests.text(results["tests"]))
            save()
        launches = counting.result()
    if "step" in parts:
        say("training step")
        results["step"] = rows_of([STEPS], options, until)[STEPS]
        print("\n".join(table.training_step(results["step"])))
        save()
    if "table" in parts:
        say(f"table of {len(rows)} rows, launches of {len(launches)} are counted")
        results["rows"] = {}
        for path, switch in SWITCH.items():
            some = [key for key in keys if (Row.parse(key).version == "plain path") == path]
            results["rows"] |= rows_of(some, options, until, **switch)
        launches |= count_all([key for key in keys if key not in launches], options, until)
        for key, row in results["rows"].items():
            row["launches"] = launches.get(key)
        rates = next((row["rates"] for row in results["rows"].values() if "rates" in row), {})
        results["about"] |= {f"{name} TB/s": round(rate / 1e9, 2) for name, rate in rates.items()}
        print("\n".join([*table.targets(results["rows"]), "", *table.everything(results["rows"])]))
    print("\n".join(table.other_targets(results.get("rows", {}), results.get("step", {}))))
    save()

    failures = list(table.failures(results))
    left_out = [key for key, found in results.get("rows", {}).items() if found.get("error") == table.OUT_OF_TIME]
    missed = [] if options.smoke else table.missed(results.get("rows", {}), results.get("step", {}))
    for what, texts in (
        ("failures", failures),
        ("rows left out for want of time", left_out),
        ("targets missed", missed),
    ):
        say(f"{len(texts)} {what}" + "".join(f"\n  {text}" for text in texts))
    print(", ".join(f"{key} {value}" for key, value in results["about"].items()))
    if options.smoke:
        print(table.SMOKE)
    return int(bool(failures or (options.check and missed)))


if __name__ == "__main__":
    sys.exit(main())
