"""What grows with the number of images, and what does not: measured once, not in rounds.

Thresholds: cost of an image, size of the state and resident memory after 10, 100, 1,000 and 10,000 images of
128 x 256 with 19 classes, beside Python lists of every fourth confidence, which end at 1,000. TCR's bank, the class
index and the samplers: 100,000 synthetic label maps of 32 x 64, of which 512 are different.
"""

from __future__ import annotations

import os
import time

import numpy as np
import torch

from selftrain_seg.mining import ClassBalancedSampler, ClassIndex, RareClassSampler, ReliabilityBank
from selftrain_seg.thresholds import ClassBalancedThreshold
from tests.benchmarks._harness import Report

CLASSES, SIZE = 19, (128, 256)
STAGES = (10, 100, 1_000, 10_000)
LISTS_UNTIL = 1_000
MANY, SMALL, DIFFERENT, BATCH = 100_000, (32, 64), 512, 64


def resident_mb():
    """Memory of this process, or NaN where the system does not tell it in this way."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return float("nan")


def run(report: Report, *, rounds: int) -> None:
    del rounds
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(16, 1, CLASSES, *SIZE, generator=generator)
    logits.scatter_add_(
        2, torch.randint(0, CLASSES, (16, 1, 1, *SIZE), generator=generator), torch.full_like(logits, 6)
    )
    thresholds(report, logits)
    bank(report, generator)
    samplers(report, generator)


class Lists:
    """Confidences in one Python list a class."""

    def __init__(self):
        self.pools = [[] for _ in range(CLASSES)]

    def update(self, logits):
        confidence, label = (part[0].numpy() for part in logits.softmax(1).max(1))
        for c, pool in enumerate(self.pools):
            pool.extend(confidence[label == c][::4])

    def compute(self):
        pools = [sorted(pool, reverse=True) for pool in self.pools]
        return [pool[max(int(0.2 * len(pool)) - 1, 0)] if pool else 1.0 for pool in pools]


def thresholds(report, logits):
    per_image, growth, lines = {}, {}, []
    for name, estimator, stages in (
        ("`ClassBalancedThreshold`", ClassBalancedThreshold(CLASSES, 0.2), STAGES),
        ("lists", Lists(), [stage for stage in STAGES if stage <= LISTS_UNTIL]),
    ):
        for image in logits[:3]:
            estimator.update(image)
        estimator.compute()
        seen, before = 0, resident_mb()
        for stage in stages:
            start = time.perf_counter()
            for image in range(seen, stage):
                estimator.update(logits[image % len(logits)])
            each = (time.perf_counter() - start) / (stage - seen) * 1e3
            start = time.perf_counter()
            estimator.compute()
            computing = (time.perf_counter() - start) * 1e3
            seen = stage
            per_image[name, stage], growth[name, stage] = each, resident_mb() - before
            lines.append(
                f"{stage:,} images {each:.2f} ms each, {computing:.0f} ms for the thresholds,"
                f" {growth[name, stage]:+.0f} MB"
            )
        report.note(f"Thresholds, {name}: {'; '.join(lines)}.")
        lines.clear()
    ours = "`ClassBalancedThreshold`"
    state = sum(value.nbytes for value in ClassBalancedThreshold(CLASSES, 0.2).state_dict().values()) / 1e6
    report.note(f"Thresholds, state: {state:.1f} MB for any number of images.")
    text = "thresholds: time of an image"
    report.promise(
        f"{text}, of the last 9,000 / of the first 1,000", per_image[ours, 10_000] / per_image[ours, 1_000], 1.25
    )
    report.promise(
        "thresholds: resident memory from 10 to 10,000 images, MB", growth[ours, 10_000] - growth[ours, 10], 50
    )


def bank(report, generator):
    maps = torch.randint(0, CLASSES, (DIFFERENT, SMALL[0] // 8, SMALL[1] // 8), generator=generator)
    maps = maps.repeat_interleave(8, 1).repeat_interleave(8, 2).to(torch.uint8)
    later = torch.where(torch.rand(maps.shape, generator=generator) < 0.1, 255, maps)
    confidence = torch.rand(maps.shape, generator=generator)
    for kept in (False, True):
        before = resident_mb()
        bank = ReliabilityBank(MANY, CLASSES, SMALL if kept else None)
        seconds = []
        for snapshot, (old, new) in enumerate(((None, maps), (maps, later))):
            start = time.perf_counter()
            for first in range(0, MANY, BATCH):
                indices = torch.arange(first, min(first + BATCH, MANY))
                places = indices % DIFFERENT
                previous = None if kept or old is None else old[places]
                bank.update(indices, new[places], confidence[places], previous=previous)
            seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
            bank.refresh(snapshot)
            seconds.append(time.perf_counter() - start)
        state = sum(buffer.nbytes for buffer in bank.buffers()) / 1e6
        report.note(
            f"TCR's bank of {MANY:,} images, labels {'stored in it' if kept else 'passed in'}: first snapshot"
            f" {seconds[0]:.0f} s, second {seconds[2]:.0f} s ({seconds[2] / MANY * 1e6:.0f} µs an image),"
            f" finishing it {seconds[3]:.1f} s; state {state:.0f} MB, resident {resident_mb() - before:+.0f} MB."
        )


def samplers(report, generator):
    # Class c is in an image with a chance that falls from 1 to about 1 / 5,000.
    chance = torch.exp(-torch.arange(CLASSES) * 8.5 / (CLASSES - 1))
    masks = torch.randint(0, CLASSES, (DIFFERENT, *SMALL), generator=generator, dtype=torch.uint8)
    start = time.perf_counter()
    ClassIndex.from_masks((masks[i % DIFFERENT] for i in range(MANY)), CLASSES)
    counting = time.perf_counter() - start
    counts = 1 + torch.rand(MANY, CLASSES, generator=generator) * 100
    counts = torch.where(torch.rand(MANY, CLASSES, generator=generator) < chance, counts, 0).int()
    index = ClassIndex(counts, torch.full((MANY,), SMALL[0] * SMALL[1], dtype=torch.int32))
    size = (index.counts.nbytes + index.pixels.nbytes) / 1e6
    report.note(
        f"`ClassIndex` of {MANY:,} label maps: {counting:.1f} s ({counting / MANY * 1e6:.0f} µs each), {size:.0f} MB."
    )
    for kind, settings in ((ClassBalancedSampler, {}), (RareClassSampler, {"min_share": 0.0})):
        before, start = resident_mb(), time.perf_counter()
        sampler = kind(index, **settings)
        making = time.perf_counter() - start
        start = time.perf_counter()
        drawn = np.fromiter(sampler, np.int64)
        drawing = time.perf_counter() - start
        shares = [float((counts[:, -1] > 0).float().mean()), float((counts[drawn, -1] > 0).float().mean())]
        report.note(
            f"`{kind.__name__}` of {MANY:,} images: built in {making:.2f} s, an epoch drawn in {drawing:.2f} s"
            f" ({drawing / MANY * 1e6:.1f} µs an image), resident {resident_mb() - before:+.0f} MB; images with the"
            f" rarest class: {shares[0]:.3%} of all, {shares[1]:.1%} of those drawn."
        )
