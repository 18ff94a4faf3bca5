"""Losses that learn from pseudo-labels: logits and labels in, a loss out.

They are one pass over the logits each way and keep no (B, C, H, W) tensor but the logits and their gradient.
Statistics are float32 for half-precision logits. Every loss says what it divides by: ``normalize="labelled"`` or
``"all"``. To keep settings in an object, use ``functools.partial``.

- ``cross_entropy``: hard or soft labels (CBST, CRST's LRENT, FixMatch and its relatives)
- ``mrkld_loss``, ``mrent_loss``, ``mrl2_loss``: cross entropy with model regularisation (CRST)
- ``region_guided_loss``: one regulariser for labelled, another for ignored pixels (IAST)
- ``dynamic_loss``, ``dynamic_mutual_loss``: pixels weighted by belief and agreement (DST-CBC, DMT)
- ``negative_loss``: learn what a pixel is not (DT-ST)
- ``class_weighted_loss`` with ``focal_class_weight`` (SAC), ``symmetric_loss`` (SCE), ``fairness_loss`` (FreeMatch)
"""

from selftrain_seg.losses.class_weighted import class_weighted_loss, focal_class_weight
from selftrain_seg.losses.cross_entropy import cross_entropy
from selftrain_seg.losses.dynamic import dynamic_loss, dynamic_mutual_loss
from selftrain_seg.losses.fairness import fairness_loss
from selftrain_seg.losses.negative import negative_loss
from selftrain_seg.losses.region_guided import region_guided_loss
from selftrain_seg.losses.regularized import mrent_loss, mrkld_loss, mrl2_loss
from selftrain_seg.losses.symmetric import symmetric_loss

__all__ = [
    "class_weighted_loss",
    "cross_entropy",
    "dynamic_loss",
    "dynamic_mutual_loss",
    "fairness_loss",
    "focal_class_weight",
    "mrent_loss",
    "mrkld_loss",
    "mrl2_loss",
    "negative_loss",
    "region_guided_loss",
    "symmetric_loss",
]
