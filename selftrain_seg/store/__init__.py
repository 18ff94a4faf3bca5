"""Pseudo-labels on disk between rounds: one folder a round, atomic, resumable, verifiable, never dense probabilities.

``PseudoLabelStore`` is the door: ``write`` opens a round for several workers and ranks, ``round`` and ``latest``
read complete ones. ``expand_soft`` turns compact soft labels into dense ones, on the device and a batch at a time.
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
