"""Small classes: which ones they are, and crops that contain them.

``mine_crops`` and ``crop`` work on whole batches on the device; ``SmallClassCrop`` follows the same law, one
sample at a time, in the workers of a DataLoader.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from selftrain_seg.mining.classes import classes_below, rare_classes
from selftrain_seg.mining.crops import crop, mine_crops

if TYPE_CHECKING:
    from selftrain_seg.mining.transform import SmallClassCrop

__all__ = ["SmallClassCrop", "classes_below", "crop", "mine_crops", "rare_classes"]


def __getattr__(name: str) -> Any:
    if name == "SmallClassCrop":  # the only one that needs torchvision
        return importlib.import_module("selftrain_seg.mining.transform").SmallClassCrop
    raise AttributeError(f"module 'selftrain_seg.mining' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
