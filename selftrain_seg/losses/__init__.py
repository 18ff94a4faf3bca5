"""Losses for training on pseudo-labels.

The forward and the backward pass each read the logits once. They store no (B, C, H, W) tensor besides the logits and
their gradient. Half-precision logits are computed in float32. ``normalize="labelled"`` or ``"all"`` selects the
divisor. To fix settings, use ``functools.partial``.

- ``cross_entropy``: hard or soft labels (CBST, CRST's LRENT, FixMatch and related methods)
- ``mrkld_loss``, ``mrent_loss``, ``mrl2_loss``: cross entropy with model regularisation (CRST)
- ``region_guided_loss``: one regulariser for labelled, another for ignored pixels (IAST)
- ``dynamic_loss``, ``dynamic_mutual_loss``: pixels weighted by confidence and agreement (DST-CBC, DMT)
- ``negative_loss``: learn which classes a pixel does not have (DT-ST)
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
