"""Every touch of a (B, C, H, W) tensor of logits, as a handful of torch operators.

Each operator has a plain implementation for any device, a Triton one for CUDA and a fake one for the compiler;
PyTorch's dispatcher chooses. So the same code runs eagerly, under ``torch.compile``, in exported programs and in CUDA
graphs, and nothing above this folder asks for a device, a compiler or a kernel. ``SELFTRAIN_SEG_KERNELS=0`` in the
environment leaves the Triton implementations out.
"""

from selftrain_seg.ops.counts import class_counts, count
from selftrain_seg.ops.fairness import fairness_loss
from selftrain_seg.ops.loss import weighted_loss
from selftrain_seg.ops.mutual import mutual_loss
from selftrain_seg.ops.negative import negative_loss
from selftrain_seg.ops.plain import plain_loss
from selftrain_seg.ops.reading import Reading, class_scores, confidence_of, pixel_scores, prior_peaks, read, usable
from selftrain_seg.ops.selection import select
from selftrain_seg.ops.soft_labels import soften

__all__ = [
    "Reading",
    "class_counts",
    "class_scores",
    "confidence_of",
    "count",
    "fairness_loss",
    "mutual_loss",
    "negative_loss",
    "pixel_scores",
    "plain_loss",
    "prior_peaks",
    "read",
    "select",
    "soften",
    "usable",
    "weighted_loss",
]
