"""Types that are passed from one stage to the next."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["IGNORE_INDEX", "PseudoLabels"]

IGNORE_INDEX = 255
"""Label of pixels that losses and statistics ignore (as in Cityscapes)."""


class PseudoLabels(NamedTuple):
    """The result of a selector: pseudo-labels of a batch, without gradients.

    Attributes:
        labels: (B, H, W) int64, the class of each selected pixel, ``ignore_index`` elsewhere.
        confidence: (B, H, W) float32 in [0, 1], the confidence ``max_c p_c`` of the network, or with a spatial prior
            the score ``max_c p_c q_c``, which may exceed 1. Zero where a logit was NaN or ``valid`` was False.
        soft: (B, C, H, W) soft labels, or None if the selector makes hard labels only.
        pixel_weight: (B, H, W) float32 weights for the loss, or None if every selected pixel has weight 1.
        predicted: (B, H, W) int64, the class the network predicts at every pixel, selected or not.
    """

    labels: Tensor
    confidence: Tensor
    soft: Tensor | None = None
    pixel_weight: Tensor | None = None
    predicted: Tensor | None = None
