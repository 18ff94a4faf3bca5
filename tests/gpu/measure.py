"""What one call costs: time of the device and of the host, memory, and whether the host waits; and its launches.

On a GPU the device's time is that of a CUDA graph of several calls, replayed, or, where a call cannot be captured, that
between two events around several calls in a queue that is full before the first of them starts. On a CPU, where all
this is only walked through, it is wall time.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from tests.benchmarks._harness import peak_extra_mb

Call = Callable[[Tensor], Any]
HOST_MS = 3  # of calls in a row: fewer launches than the device's queue has places for (1,024)
CYCLES_PER_MS = 2_000_000  # of the fastest clock
# What the profiler reports beside the kernels, copies and fills of the device: by kind or, in older torch, by name.
BESIDE = {
    *("overhead", "user_annotation", "gpu_user_annotation", "cuda_sync", "cuda_event"),
    *("Activity Buffer Request", "Buffer Flush", "Command Buffer Full", "Driver Compiler", "Instrumentation"),
    *("Lazy Function Loading", "Resource", "Runtime Triggered Module Loading"),
}


@dataclass
class Cost:
    """A call's costs: times in ms, peak memory in 10^6 bytes. ``device`` was found ``by`` a graph, events or wall.

    ``tainted``: a CUDA graph could not be made, and what that leaves behind may disturb the rest of the process.
    """

    device: float
    by: str
    wall: float
    host: float
    peak_mb: float
    waits: bool
    note: str = ""
    tainted: bool = False


def cost(call: Call, inputs: Sequence[Tensor], *, rounds: int = 7) -> Cost:
    """Measure a call. The inputs take turns: several that together do not fit into the device's cache."""
    on_gpu = inputs[0].is_cuda
    for each in (*inputs, *inputs):  # compiled, and its memory is in the allocator
        call(each)
    synchronize(on_gpu)
    start = time.perf_counter()
    call(inputs[0])
    synchronize(on_gpu)
    once = (time.perf_counter() - start) * 1e3
    peak_mb = peak_extra_mb(lambda: call(inputs[0]), on_gpu)
    repeats = max(1, int(min(20, HOST_MS / once)))
    host, wall = times_of_host(call, inputs, repeats, rounds)
    if not on_gpu:
        return Cost(wall, "wall", wall, host, peak_mb, False)
    waits = does_wait(lambda: call(inputs[0]))
    device = by_events(call, inputs, repeats, host, rounds)
    found = Cost(device, "events", wall, host, peak_mb, waits)
    if not waits:  # what waits cannot be captured
        try:
            found.device, found.by = by_graph(call, inputs, device, rounds), "graph"
        except Exception as error:
            found.note, found.tainted = f"not captured: {error}"[:200], True
    return found


def synchronize(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()


def by_graph(call: Call, inputs: Sequence[Tensor], estimate: float, rounds: int) -> float:
    """Milliseconds of the device for one of the calls in a replayed graph, which lasts 2 ms or longer."""
    repeats = len(inputs) * max(1, min(16, round(2 / (max(estimate, 1e-3) * len(inputs)))))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for each in inputs:
            call(each)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # captures on a stream of its own
        for each in itertools.islice(itertools.cycle(inputs), repeats):
            call(each)
    graph.replay()
    found = [between_events(graph.replay, 3.0) / repeats for _ in range(rounds)]
    graph.reset()
    return statistics.median(found)


def by_events(call: Call, inputs: Sequence[Tensor], repeats: int, host: float, rounds: int) -> float:
    """Milliseconds of the device for one of several calls, queued while the device is kept busy."""

    def calls() -> None:
        for each in itertools.islice(itertools.cycle(inputs), repeats):
            call(each)

    busy_ms = 1.5 * host * repeats + 1
    return statistics.median(between_events(calls, busy_ms) / repeats for _ in range(rounds))


def between_events(work: Callable[[], Any], busy_ms: float) -> float:
    """Milliseconds of the device between events around the work, which is enqueued while the device only sleeps."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    torch.cuda._sleep(int(busy_ms * CYCLES_PER_MS))
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def does_wait(call: Callable[[], Any]) -> bool:
    """Whether PyTorch notices that the host waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def launched(call: Call, inputs: Sequence[Tensor], on_gpu: bool) -> float | None:
    """How many kernels, copies and fills a call gives to the device; None if the profiler sees nothing there.

    In a process that measures no time: what the profiler leaves behind slows launches down and disturbs CUDA graphs.
    """
    calls = 3
    for each in inputs:
        call(each)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with torch.profiler.profile(activities=activities) as profile:
        for each in itertools.islice(itertools.cycle(inputs), calls):
            call(each)
        synchronize(on_gpu)
    there = [event for event in profile.events() if event.device_type == DeviceType.CUDA]
    there = [event for event in there if not (event.is_user_annotation or {kind_of(event), event.name} & BESIDE)]
    return round(len(there) / calls, 1) if there else None


def kind_of(event: Any) -> str | None:
    return getattr(event, "activity_type", None)


def times_of_host(call: Call, inputs: Sequence[Tensor], repeats: int, rounds: int) -> tuple[float, float]:
    """Milliseconds until the host is done with a call, and until the device is: of several calls in a row."""
    on_gpu, host, wall = inputs[0].is_cuda, [], []
    for _ in range(rounds):
        synchronize(on_gpu)
        start = time.perf_counter()
        for each in itertools.islice(itertools.cycle(inputs), repeats):
            call(each)
        host.append((time.perf_counter() - start) / repeats * 1e3)
        synchronize(on_gpu)
        wall.append((time.perf_counter() - start) / repeats * 1e3)
    return statistics.median(host), statistics.median(wall)


def bytes_per_ms(device: torch.device, size: int) -> dict[str, float]:
    """How fast the device reads, and copies (bytes read and written), ``size`` bytes."""
    data, other = torch.ones(size // 4, device=device), torch.empty(size // 4, device=device)
    found = {}
    for name, call, moved in (("read", lambda _: data.sum(), size), ("copy", lambda _: other.copy_(data), 2 * size)):
        call(data)
        on_gpu = device.type == "cuda"
        found[name] = moved / (by_events(call, [data], 10, 0.1, 7) if on_gpu else times_of_host(call, [data], 1, 3)[1])
    return found
