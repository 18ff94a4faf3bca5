"""Pseudo-labels of offline rounds on disk, one folder per round; writing is atomic, resumable and checksummed.

``PseudoLabelStore.write`` opens a round for writing by several workers and ranks; ``round`` and ``latest`` open
complete rounds for reading. ``expand_soft`` expands a batch of compact soft labels to dense ones on the device.
"""

from selftrain_seg.store._settings import RoundSettings
from selftrain_seg.store.reader import PseudoLabelDataset, StoredRound
from selftrain_seg.store.soft import expand_soft
from selftrain_seg.store.store import PseudoLabelStore
from selftrain_seg.store.writer import RoundWriter

__all__ = [
    "PseudoLabelDataset",
    "PseudoLabelStore",
    "RoundSettings",
    "RoundWriter",
    "StoredRound",
    "expand_soft",
]
