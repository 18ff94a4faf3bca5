"""Timing and memory of competing versions of one operation, measured side by side.

Versions take turns within a round, so that a busy machine slows all of them alike; what is reported is the median
over rounds, its quartiles, and ratios of medians. On the CPU, one thread; ``tests.gpu`` measures a GPU. Memory is the
peak that torch, NumPy and Python allocate beyond what existed before the call (inputs do not count, gradients do).
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
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
class Target:
    """One line of the table of targets: times in ms, how many times faster than the reference, a ratio of memory."""

    operation: str
    reference: str
    reference_ms: float
    ours_ms: float
    compiled_ms: float | None
    floor_ms: float | None
    faster: float
    compiled_faster: float | None
    memory: str
    memory_kept: bool

    @property
    def speedup(self) -> float:
        return self.reference_ms / self.ours_ms

    @property
    def compiled_speedup(self) -> float | None:
        return None if self.compiled_ms is None else self.reference_ms / self.compiled_ms

    @property
    def missed(self) -> list[str]:
        """What falls short, empty where nothing does."""
        out = ["eager"] if self.speedup < self.faster else []
        if self.compiled_faster and self.compiled_speedup and self.compiled_speedup < self.compiled_faster:
            out.append("compiled")
        return out if self.memory_kept else [*out, "memory"]


@dataclass
class Report:
    compile: bool = False
    entries: list[Entry] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def compiled(self, name: str, call: Callable[..., Any], *inputs: Any) -> dict[str, Callable[[], Any]]:
        """``{name: the compiled call on the inputs}``, compiled now; empty where that was not asked for."""
        if not self.compile:
            return {}
        torch.compiler.reset()
        fast = torch.compile(call)
        fast(*inputs)
        return {name: lambda: fast(*inputs)}

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

    def target(
        self,
        operation: str,
        measured: Mapping[str, Entry],
        ours: str,
        reference: str,
        *,
        faster: float,
        compiled: tuple[str, float | None] | None = None,
        floor: str | None = None,
        memory: tuple[str, float, float] | None = None,
    ) -> None:
        """Set what was measured beside what is wanted.

        Args:
            operation: what to call it.
            measured: from ``compare``.
            ours: the version that is to be ``faster`` times as fast as ``reference``.
            reference: the version to compare with.
            faster: how many times.
            compiled: its compiled version, and how many times as fast as ``reference`` that is to be, if said.
            floor: the version that does only what must be done.
            memory: what ``value`` is a ratio to, the value, and its limit.
        """
        fast = measured.get(compiled[0]) if compiled else None
        self.targets.append(
            Target(
                operation,
                reference,
                measured[reference].median_ms,
                measured[ours].median_ms,
                fast.median_ms if fast else None,
                measured[floor].median_ms if floor else None,
                faster,
                compiled[1] if compiled else None,
                f"{memory[1]:.2f} of {memory[0]} (≤ {memory[2]:g})" if memory else "",
                memory is None or memory[1] <= memory[2],
            )
        )

    def note(self, text: str) -> None:
        self.notes.append(text)

    def promise(self, text: str, value: float, limit: float) -> None:
        self.checks.append(Check(text, value, limit))

    def extend(self, results: Mapping[str, Any]) -> None:
        """Add what another process measured: its ``as_dict``."""
        kinds = ((self.entries, Entry, "entries"), (self.checks, Check, "checks"), (self.targets, Target, "targets"))
        for mine, kind, name in kinds:
            names = {one.name for one in fields(kind)}
            mine += [kind(**{key: value for key, value in one.items() if key in names}) for one in results[name]]
        self.notes += results["notes"]

    def as_dict(self) -> dict[str, Any]:
        return {
            "entries": [asdict(entry) for entry in self.entries],
            "checks": [{**asdict(check), "kept": check.kept} for check in self.checks],
            "targets": [{**asdict(target), "missed": target.missed} for target in self.targets],
            "notes": self.notes,
        }

    def markdown(self, about: Mapping[str, Any], rounds: int) -> str:
        """Targets, every measurement and the notes, for the documentation."""
        lines = [
            "### Targets",
            "",
            "| operation | against | reference ms | ours ms | faster | compiled ms | faster | memory |",
            "|---|---|--:|--:|--:|--:|--:|---|",
        ]
        for one in self.targets:
            eager = f"{one.speedup:.1f} × (≥ {one.faster:g})"
            compiled = "" if one.compiled_ms is None else f"{one.compiled_ms:.1f}"
            faster = "" if one.compiled_speedup is None else f"{one.compiled_speedup:.1f} ×"
            if faster and one.compiled_faster:
                faster += f" (≥ {one.compiled_faster:g})"
            eager, faster, memory = (
                f"**missed:** {text}" if kind in one.missed else text
                for kind, text in (("eager", eager), ("compiled", faster), ("memory", one.memory))
            )
            lines.append(
                f"| {one.operation} | {one.reference} | {one.reference_ms:.1f} | {one.ours_ms:.1f} | {eager}"
                f" | {compiled} | {faster} | {memory} |"
            )
        lines += ["", "### Other targets", "", "| target | measured | at most | |", "|---|--:|--:|---|"]
        for check in self.checks:
            verdict = "met" if check.kept else "**missed**"
            lines.append(f"| {check.promise} | {check.value:.3f} | {check.limit:.3f} | {verdict} |")
        lines += ["", "### Notes", "", *(f"- {note}" for note in self.notes)]
        lines += ["", "### All measurements", "", "| operation | version | median ms | quartiles | peak MB |"]
        lines += ["|---|---|--:|--:|--:|"]
        before = ""
        for entry in self.entries:
            name, before = "" if entry.operation == before else entry.operation, entry.operation
            peak = "" if entry.peak_mb is None else f"{entry.peak_mb:.1f}"
            quartiles = f"{entry.lower_ms:.2f} – {entry.upper_ms:.2f}"
            lines.append(f"| {name} | {entry.version} | {entry.median_ms:.2f} | {quartiles} | {peak} |")
        settings = {**about, "rounds": rounds}
        lines += ["", "### Machine", "", ", ".join(f"{key} {value}" for key, value in settings.items()) + "."]
        return "\n".join(lines) + "\n"

    def table(self) -> str:
        lines = [f"{'operation':<30}{'version':<30}{'median ms':>10}{'quartiles':>18}{'peak MB':>10}"]
        before = ""
        for entry in self.entries:
            name = "" if entry.operation == before else entry.operation
            before = entry.operation
            quartiles = f"{entry.lower_ms:.1f} - {entry.upper_ms:.1f}"
            peak = "" if entry.peak_mb is None else f"{entry.peak_mb:.0f}"
            lines.append(f"{name:<30}{entry.version:<30}{entry.median_ms:>10.1f}{quartiles:>18}{peak:>10}")
        lines += [""]
        for check in self.checks:
            verdict = "met" if check.kept else "MISSED"
            lines.append(f"{check.promise:<84}{check.value:>8.3f} <= {check.limit:<8.3f}{verdict}")
        lines += [""]
        for one in self.targets:
            compiled = "" if one.compiled_speedup is None else f", compiled {one.compiled_speedup:.1f} x"
            compiled += f" (wanted {one.compiled_faster:g})" if compiled and one.compiled_faster else ""
            verdict = "MISSED: " + ", ".join(one.missed) if one.missed else "met"
            text = f"{one.speedup:.1f} x (wanted {one.faster:g}){compiled}"
            lines.append(f"{one.operation:<34}{text:<58}{one.memory:<50}{verdict}")
        return "\n".join([*lines, "", *self.notes])


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_extra_mb(call: Callable[[], Any], on_gpu: bool = False) -> float:
    """Peak memory, in 10^6 bytes, that torch allocates during ``call`` beyond what it held before."""
    gc.collect()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    # The profiler sees every allocation, those inside operators too; resident memory would depend on malloc.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    tracemalloc.start()  # sees NumPy's and Python's allocations
    call()
    others = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return (peak + others) / 1e6


def write_half(file: Path, device: str, text: str) -> None:
    """Write the "CPU" or the "GPU" half of a page of results, and leave the other as it is."""
    halves = {"CPU": "", "GPU": ""}
    if file.exists():
        for part in file.read_text(encoding="utf-8").split("## On a ")[1:]:
            name, _, body = part.partition("\n")
            halves[name.strip()] = body.strip("\n")
    halves[device] = text.strip("\n")
    file.parent.mkdir(parents=True, exist_ok=True)
    page = "\n\n".join(f"## On a {name}\n\n{body}" for name, body in halves.items() if body)
    file.write_text(page + "\n", encoding="utf-8")


def environment() -> dict[str, Any]:
    """Versions and hardware, to be stored with the numbers."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load average": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
