"""Self-training components for semantic segmentation.

Data flows one way: logits -> confidence -> thresholds -> selectors -> losses. Each stage is a
subpackage, imported when it is first used, so ``import selftrain_seg`` costs little more than torch.
"""

import importlib
from types import ModuleType

from selftrain_seg._checks import value_checks
from selftrain_seg.outputs import as_logits, pad_to_multiple
from selftrain_seg.types import IGNORE_INDEX, PseudoLabels

__version__ = "0.2.0"

_STAGES = ("confidence", "thresholds", "selectors", "losses")
_ROOMS = ("batchnorm", "datasets", "distributed", "mining", "restyle", "stopping", "store", "teachers", "views")
_SUBPACKAGES = (*_STAGES, *_ROOMS, "visualize")

__all__ = ["IGNORE_INDEX", "PseudoLabels", "__version__", "as_logits", "pad_to_multiple", "value_checks", *_SUBPACKAGES]


def __getattr__(name: str) -> ModuleType:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"selftrain_seg.{name}")
    raise AttributeError(f"module 'selftrain_seg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
