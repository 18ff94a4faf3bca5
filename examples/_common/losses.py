"""The loss on labelled images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from selftrain_seg import IGNORE_INDEX
from selftrain_seg.losses import cross_entropy

if TYPE_CHECKING:
    from _common.run import Run


def supervised_loss(run: Run, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy over the labelled pixels of all processes, 0 if no pixel has a label.

    Processes may have different numbers of labelled pixels. The mean of each process alone would give the pixels of
    different processes different weights.

    Args:
        run: sums the pixel counts of all processes.
        logits: (B, C, H, W).
        labels: (B, H, W), ``IGNORE_INDEX`` where a pixel has no label.
    """
    total = cross_entropy(logits, labels, reduction="sum")
    return run.mean(total, (labels != IGNORE_INDEX).sum())
