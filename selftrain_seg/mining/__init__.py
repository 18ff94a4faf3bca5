"""Small classes: which ones they are, crops that contain them, images that show them, and mixing them in.

``mine_crops`` and ``crop`` work on whole batches on the device; ``SmallClassCrop`` follows the same law, one
sample at a time, in the workers of a DataLoader. ``ClassBalancedSampler``, ``ImportanceSampler`` and
``RareClassSampler`` choose the images from a ``ClassIndex``; ``ReliabilityBank`` tells which classes of which images
to trust. ``class_mix``, ``cut_mix`` and ``paste_classes`` carry regions from one image of a batch to another.
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
