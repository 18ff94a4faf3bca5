"""Restyle labelled source images to look like the target, and validate a network on them.

``match_moments`` and ``swap_amplitudes`` restyle images; ``restyled_confusion`` scores a network on restyled images.
"""

from selftrain_seg.restyle.confusion import ConfusionMatrix, ConfusionSummary
from selftrain_seg.restyle.fourier import swap_amplitudes
from selftrain_seg.restyle.moments import match_moments
from selftrain_seg.restyle.validation import restyled_confusion

__all__ = ["ConfusionMatrix", "ConfusionSummary", "match_moments", "restyled_confusion", "swap_amplitudes"]
