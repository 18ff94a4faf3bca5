"""Show small classes more often: find them, crop around them, sample images that contain them, paste them.

``mine_crops`` and ``crop`` work on whole batches on the device; ``SmallClassCrop`` does the same for one sample at a
time, in DataLoader workers. ``ClassBalancedSampler``, ``ImportanceSampler`` and ``RareClassSampler`` sample images by
the counts of a ``ClassIndex``; ``ReliabilityBank`` marks the classes of each image whose pseudo-labels are stable.
``class_mix``, ``cut_mix`` and ``paste_classes`` paste regions of one image into another.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from selftrain_seg.mining.class_mix import class_mix
from selftrain_seg.mining.classes import classes_below, rare_classes
from selftrain_seg.mining.crops import crop, mine_crops
from selftrain_seg.mining.cut_mix import cut_mix
from selftrain_seg.mining.index import ClassIndex
from selftrain_seg.mining.mixed import MixedBatch
from selftrain_seg.mining.paste import paste_classes
from selftrain_seg.mining.reliability import ReliabilityBank
from selftrain_seg.mining.samplers import ClassBalancedSampler, ImportanceSampler, RareClassSampler

if TYPE_CHECKING:
    from selftrain_seg.mining.transform import SmallClassCrop

__all__ = [
    "ClassBalancedSampler",
    "ClassIndex",
    "ImportanceSampler",
    "MixedBatch",
    "RareClassSampler",
    "ReliabilityBank",
    "SmallClassCrop",
    "class_mix",
    "classes_below",
    "crop",
    "cut_mix",
    "mine_crops",
    "paste_classes",
    "rare_classes",
]


def __getattr__(name: str) -> Any:
    if name == "SmallClassCrop":  # the only one that needs torchvision
        return importlib.import_module("selftrain_seg.mining.transform").SmallClassCrop
    raise AttributeError(f"module 'selftrain_seg.mining' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
