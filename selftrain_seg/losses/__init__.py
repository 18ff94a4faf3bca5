"""Losses that learn from pseudo-labels: logits and labels in, a loss out.

Every loss is a function and, for those who configure by object, a Module of the same name; see ``mrkld_loss`` for
what all of them have in common. They are one pass over the logits each way and keep no (B, C, H, W) tensor but
the logits and their gradient. Statistics are float32 for half-precision logits.

- ``mrkld_loss``, ``mrent_loss``, ``mrl2_loss``: cross entropy with model regularisation, hard or soft labels (CRST)
- ``lrent_loss``: cross entropy with soft labels (CRST)
- ``region_guided_loss``: one regulariser for labelled, another for ignored pixels (IAST)
- ``dynamic_loss``, ``dynamic_mutual_loss``: pixels weighted by belief and agreement (DST-CBC, DMT)
- ``negative_loss``: learn what a pixel is not (DT-ST)
- ``class_weighted_loss`` with ``focal_class_weight`` (SAC), ``symmetric_loss`` (SCE), ``fairness_loss`` (FreeMatch)
"""

from selftrain_seg.losses.class_weighted import ClassWeightedLoss, class_weighted_loss, focal_class_weight
from selftrain_seg.losses.dynamic import DynamicLoss, DynamicMutualLoss, dynamic_loss, dynamic_mutual_loss
from selftrain_seg.losses.fairness import FairnessLoss, fairness_loss
from selftrain_seg.losses.negative import NegativeLoss, negative_loss
from selftrain_seg.losses.region_guided import RegionGuidedLoss, region_guided_loss
from selftrain_seg.losses.regularized import (
    MRENTLoss,
    MRKLDLoss,
    MRL2Loss,
    mrent_loss,
    mrkld_loss,
    mrl2_loss,
)
from selftrain_seg.losses.soft import LRENTLoss, lrent_loss
from selftrain_seg.losses.symmetric import SymmetricLoss, symmetric_loss

__all__ = [
    "ClassWeightedLoss",
    "DynamicLoss",
    "DynamicMutualLoss",
    "FairnessLoss",
    "LRENTLoss",
    "MRENTLoss",
    "MRKLDLoss",
    "MRL2Loss",
    "NegativeLoss",
    "RegionGuidedLoss",
    "SymmetricLoss",
    "class_weighted_loss",
    "dynamic_loss",
    "dynamic_mutual_loss",
    "fairness_loss",
    "focal_class_weight",
    "lrent_loss",
    "mrent_loss",
    "mrkld_loss",
    "mrl2_loss",
    "negative_loss",
    "region_guided_loss",
    "symmetric_loss",
]
