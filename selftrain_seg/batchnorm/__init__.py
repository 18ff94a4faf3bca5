"""Tools for BatchNorm statistics: estimate, mix, choose, keep one set per domain, freeze.

Statistics are a plain dict of tensors, a subset of the network's ``state_dict``.
"""

from selftrain_seg.batchnorm.choose import AlphaChoice, choose_alpha
from selftrain_seg.batchnorm.domains import add_domain, remove_domain, use_domain
from selftrain_seg.batchnorm.estimate import estimate_statistics
from selftrain_seg.batchnorm.freeze import freeze_batchnorm
from selftrain_seg.batchnorm.statistics import get_statistics, mix_statistics, set_statistics

__all__ = [
    "AlphaChoice",
    "add_domain",
    "choose_alpha",
    "estimate_statistics",
    "freeze_batchnorm",
    "get_statistics",
    "mix_statistics",
    "remove_domain",
    "set_statistics",
    "use_domain",
]
