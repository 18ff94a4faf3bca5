"""One training step of DeepLabV2-ResNet-101 on two images of 512 x 1024 under bf16 autocast, and what is added to it.

All versions share a student, a teacher and an optimizer whose learning rate is next to nothing, and take turns: what
they do differs, what they do it with does not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from selftrain_seg.losses import mrkld_loss, region_guided_loss
from selftrain_seg.selectors import InstanceAdaptiveSelector, select_reweighted
from selftrain_seg.teachers import MeanTeacher
from selftrain_seg.thresholds import ClassBalancedThreshold
from tests.benchmarks import plain
from tests.gpu.measure import synchronize
from tests.gpu.network import deeplab_v2

CLASSES, PORTION, MOMENTUM = 19, 0.2, 0.999
NETWORK, WITH_TEACHER, CBST, PLAIN, IAST = (
    "network, F.cross_entropy",
    "… and the teacher's forward",
    "CBST online",
    "CBST online, plain torch",
    "IAST",
)
NAMES = (NETWORK, WITH_TEACHER, CBST, PLAIN, IAST)
OVERHEAD = 0.03  # of CBST on the network with its teacher, at most


def versions(device: torch.device, size: tuple[int, int], tiny: bool) -> dict[str, Callable[[], Any]]:
    """Training steps by name; each leaves its networks ready for any other."""
    torch.manual_seed(0)
    student = deeplab_v2(CLASSES, device, tiny=tiny).train()
    teacher = MeanTeacher(student, momentum=MOMENTUM, warmup=False)
    average = deeplab_v2(CLASSES, device, tiny=tiny).eval().requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-9, momentum=0.9)
    images = torch.randn(2, 3, *size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (2, *size), device=device)
    estimator = ClassBalancedThreshold(CLASSES, PORTION).to(device)
    counts = torch.zeros(CLASSES, plain.BINS, dtype=torch.int64, device=device)
    adaptive = InstanceAdaptiveSelector(CLASSES).to(device)
    pairs = [
        (theirs, ours)
        for of_average, of_student in ((average.parameters, student.parameters), (average.buffers, student.buffers))
        for theirs, ours in zip(of_average(), of_student(), strict=True)
        if theirs.is_floating_point()
    ]

    def learn(loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            value = loss(student(images))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def predict(net: torch.nn.Module) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return net(images)

    def network() -> None:
        learn(lambda z: F.cross_entropy(z, labels, ignore_index=255))

    def with_teacher() -> None:
        predict(teacher)
        network()

    def cbst() -> None:
        teacher.update(student)
        logits = predict(teacher)
        estimator.update(logits)
        pseudo = select_reweighted(logits, estimator.compute())
        learn(lambda z: mrkld_loss(z, pseudo.labels))

    @torch.no_grad()
    def plain_labels() -> torch.Tensor:
        torch._foreach_lerp_([pair[0] for pair in pairs], [pair[1] for pair in pairs], 1 - MOMENTUM)
        logits = predict(average)
        plain.update(logits, counts)
        return plain.reweighted(logits, plain.compute(counts, PORTION))

    def plain_cbst() -> None:
        pseudo = plain_labels()
        learn(lambda z: plain.mrkld(z, pseudo))

    def iast() -> None:
        teacher.update(student)
        pseudo = adaptive(predict(teacher))
        learn(lambda z: region_guided_loss(z, pseudo.labels))

    return {NETWORK: network, WITH_TEACHER: with_teacher, CBST: cbst, PLAIN: plain_cbst, IAST: iast}


def measure(device: torch.device, *, smoke: bool = False) -> dict[str, Any]:
    """Median milliseconds of a step of each version, or its error; and the peak of memory."""
    on_gpu = device.type == "cuda"
    size, rounds, repeats, warm_up = ((32, 48), 1, 1, 0) if smoke else ((512, 1024), 7, 4, 4)
    torch.backends.cudnn.benchmark = True
    steps = versions(device, size, smoke)
    times: dict[str, list[float]] = {name: [] for name in steps}
    errors: dict[str, str] = {}

    def several(name: str, count: int) -> float:
        synchronize(on_gpu)
        start = time.perf_counter()
        for _ in range(count):
            steps[name]()
        synchronize(on_gpu)
        return (time.perf_counter() - start) / count * 1e3

    for count, keep in ((warm_up, False), *[(repeats, True)] * rounds):
        for name in [name for name in steps if name not in errors]:
            try:
                found = several(name, count) if count else 0.0
            except Exception as error:
                errors[name] = f"{type(error).__name__}: {error}"[:300]
            else:
                times[name] += [found] * keep
    return {
        "ms": {name: statistics.median(values) for name, values in times.items() if values and name not in errors},
        "errors": errors,
        "peak MB": torch.cuda.max_memory_allocated() / 1e6 if on_gpu else None,
        "size": list(size),
    }
