"""A process that measures rows, one after the other, and writes each to a file as soon as it is known.

``python -m tests.gpu.child FILE KEY ...``: a row that ends the process leaves the ones before it, and the parent starts
another process for those after it. With ``--count`` launches are counted and no time is measured. It leaves compiled
kernels on disk, where Triton and torch.compile find them in later processes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler is talkative
os.environ.setdefault("TEARDOWN_CUPTI", "0")  # and need not start anew for each row

import torch

from tests.gpu import cases, measure, steps

AGAIN = 3  # exit status: go on in a new process
STEPS = "training step"
SECONDS = {STEPS: 150}  # what hangs is ended by the system's alarm
SECONDS_OF_A_ROW = 60


def measured(key: str, device: torch.device, rates: dict[str, float], *, smoke: bool, count: bool) -> dict[str, Any]:
    """What is found out about a row."""
    if key == STEPS:
        return {} if count else steps.measure(device, smoke=smoke)
    inputs = cases.Inputs(cases.Row.parse(key), device, smoke)
    call, logits = cases.call_of(inputs), inputs.logits
    if count:
        return {"launches": measure.launched(call, logits[:1], device.type == "cuda")}
    moved = cases.OPERATIONS[inputs.row.operation].moved
    floor = moved(inputs) if moved is not None else None
    found = asdict(measure.cost(call, logits, rounds=1 if smoke else 5))
    pass_ms = logits[0].nbytes / rates["read"]
    found |= {"shape": list(inputs.shape), "pass_ms": pass_ms, "passes": found["device"] / pass_ms}
    return found | {"floor": None if floor is None else floor / rates["read"]}


def clean_up(device: torch.device) -> bool:
    """Give the memory back; whether the device still answers."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except Exception:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.child", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("keys", nargs="+")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--count", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    torch.set_num_threads(1)
    if arguments.count:
        rates: dict[str, float] = {}
        measure.launched(torch.square, [torch.ones(1, device=device)], on_gpu)  # the profiler starts
    else:
        rates = measure.bytes_per_ms(device, 2**16 if arguments.smoke else 2**30)
    clean_up(device)
    for key in arguments.keys:
        signal.alarm(SECONDS.get(key, SECONDS_OF_A_ROW))
        try:
            found = measured(key, device, rates, smoke=arguments.smoke, count=arguments.count)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"[:500]}
        signal.alarm(0)
        answers = clean_up(device)
        with arguments.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"key": key, "rates": rates, **found}) + "\n")
        if not answers or found.get("tainted"):
            return AGAIN
    return 0


if __name__ == "__main__":
    sys.exit(main())
