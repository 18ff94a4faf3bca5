"""The custom torch operators that read (B, C, H, W) logits; the rest of the package is built on them.

Each operator has a plain implementation for any device, a fake one for the compiler and, except for a few operators on
label maps, a Triton one for CUDA. PyTorch's dispatcher chooses among them, so the same code runs eagerly, under
``torch.compile``, in exported programs and in CUDA graphs. The environment variable ``SELFTRAIN_SEG_KERNELS=0``
disables the Triton implementations.
"""

from selftrain_seg.ops._blocks import wide
from selftrain_seg.ops.adapting import adapt
from selftrain_seg.ops.counts import class_counts, count
from selftrain_seg.ops.deciding import decide, weigh
from selftrain_seg.ops.fairness import fairness_loss
from selftrain_seg.ops.loss import weighted_loss
from selftrain_seg.ops.mutual import mutual_loss
from selftrain_seg.ops.negative import negative_loss
from selftrain_seg.ops.observing import Observation, observe
from selftrain_seg.ops.plain import plain_loss
from selftrain_seg.ops.ranking import ranked
from selftrain_seg.ops.reading import (
    Reading,
    class_scores,
    confidence_of,
    pixel_scores,
    prior_peaks,
    read,
    read_log_confidence,
    usable,
)
from selftrain_seg.ops.running import discount, follow
from selftrain_seg.ops.selection import select
from selftrain_seg.ops.soft_labels import soften
from selftrain_seg.ops.table import tabulate

__all__ = [
    "Observation",
    "Reading",
    "adapt",
    "class_counts",
    "class_scores",
    "confidence_of",
    "count",
    "decide",
    "discount",
    "fairness_loss",
    "follow",
    "mutual_loss",
    "negative_loss",
    "observe",
    "pixel_scores",
    "plain_loss",
    "prior_peaks",
    "ranked",
    "read",
    "read_log_confidence",
    "select",
    "soften",
    "tabulate",
    "usable",
    "weigh",
    "weighted_loss",
    "wide",
]
