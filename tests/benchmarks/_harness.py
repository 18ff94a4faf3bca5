"""Timing and memory of competing versions of one operation, measured side by side.

Versions take turns within a round, so that a busy machine slows all of them alike; what is reported is the median
over rounds, its quartiles, and ratios of medians. One thread. Memory is the peak that torch allocates beyond what
existed before the call (inputs do not count, gradients do).
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch


@dataclass
class Entry:
    """One version of one operation."""

    operation: str
    version: str
    median_ms: float
    lower_ms: float
    upper_ms: float
    peak_mb: float | None = None


@dataclass
class Check:
    """A promise and what was measured: ``value`` should be at most ``limit``."""

    promise: str
    value: float
    limit: float

    @property
    def kept(self) -> bool:
        return self.value <= self.limit


@dataclass
class Report:
    entries: list[Entry] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def compare(
        self, operation: str, versions: Mapping[str, Callable[[], Any]], *, rounds: int, memory: bool = True
    ) -> dict[str, Entry]:
        """Measure the versions of an operation against one another and keep the result."""
        times: dict[str, list[float]] = {name: [] for name in versions}
        peaks = {name: peak_extra_mb(call) if memory else None for name, call in versions.items()}  # and warm-up
        for _ in range(rounds):
            for name, call in versions.items():
                times[name].append(_seconds(call) * 1e3)
        measured = {}
        for name, values in times.items():
            lower, median, upper = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
            measured[name] = Entry(operation, name, median, lower, upper, peaks[name])
        self.entries += measured.values()
        return measured

    def promise(self, text: str, value: float, limit: float) -> None:
        self.checks.append(Check(text, value, limit))

    def as_dict(self) -> dict[str, Any]:
        return {
            "entries": [asdict(entry) for entry in self.entries],
            "checks": [{**asdict(check), "kept": check.kept} for check in self.checks],
        }

    def table(self) -> str:
        lines = [f"{'operation':<26}{'version':<30}{'median ms':>10}{'quartiles':>18}{'peak MB':>10}"]
        before = ""
        for entry in self.entries:
            name = "" if entry.operation == before else entry.operation
            before = entry.operation
            quartiles = f"{entry.lower_ms:.1f} - {entry.upper_ms:.1f}"
            peak = "" if entry.peak_mb is None else f"{entry.peak_mb:.0f}"
            lines.append(f"{name:<26}{entry.version:<30}{entry.median_ms:>10.1f}{quartiles:>18}{peak:>10}")
        lines += [""]
        for check in self.checks:
            verdict = "kept" if check.kept else "MISSED"
            lines.append(f"{check.promise:<84}{check.value:>8.3f} <= {check.limit:<8.3f}{verdict}")
        return "\n".join(lines)


def _seconds(call: Callable[[], Any]) -> float:
    _synchronize()
    start = time.perf_counter()
    call()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_extra_mb(call: Callable[[], Any]) -> float:
    """Peak memory, in 10^6 bytes, that torch allocates during ``call`` beyond what it held before."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    # The profiler sees every allocation, those inside operators too; resident memory would depend on malloc.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 1e6


def environment() -> dict[str, Any]:
    """Versions and hardware, to be stored with the numbers."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
