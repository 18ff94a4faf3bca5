"""Source images in the target's colours: labelled images that look like the target, to validate a network on.

``restyle(images, style)`` gives images in the style of others; ``restyled_confusion`` measures a network on them.
"""

from selftrain_seg.restyle.confusion import ConfusionMatrix, ConfusionSummary
from selftrain_seg.restyle.fourier import swap_amplitudes
from selftrain_seg.restyle.moments import match_moments
from selftrain_seg.restyle.validation import restyled_confusion

__all__ = ["ConfusionMatrix", "ConfusionSummary", "match_moments", "restyled_confusion", "swap_amplitudes"]
