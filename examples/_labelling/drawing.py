"""Which images are drawn for training."""

from __future__ import annotations

from typing import Any

from _common.run import Run

from selftrain_seg.thresholds import PortionSchedule, source_subset


def source_order(settings: Any, length: int, number: int) -> list[int] | None:
    """Return the indices of the source images of a round, by ``--source-portion`` and ``--source-redraw``.

    None stands for all images, in another random order in each epoch.
    """
    share = 1.0 if settings.source_portion is None else PortionSchedule(*settings.source_portion)(number)
    if share == 1:
        return None
    return source_subset(length, share, seed=settings.seed + number * settings.source_redraw).tolist()


def sampler_options(run: Run, steps: int) -> dict[str, int]:
    """Return the arguments of a sampler that draws the images of so many steps for all processes.

    The order is the same on every process; ``run.loader`` shares it among them.
    """
    images = steps * run.settings.accumulate * run.settings.batch
    return {"num_samples": images, "rank": 0, "num_replicas": 1}
