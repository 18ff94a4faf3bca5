"""The few types that cross from one stage to the next."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["IGNORE_INDEX", "PseudoLabels"]

IGNORE_INDEX = 255
"""Label of pixels that take part in nothing, neither in a loss nor in a statistic (as in Cityscapes)."""


class PseudoLabels(NamedTuple):
    """What a selector returns: labels for a batch, detached from the graph.

    Attributes:
        labels: (B, H, W) int64, the class of each selected pixel, ``ignore_index`` elsewhere.
        confidence: (B, H, W) float32 in [0, 1], the network's confidence ``max_c p_c`` (with a spatial prior
            the score ``max_c p_c q_c``, which may exceed 1). Zero where the logits were NaN or ``valid`` was False.
        soft: (B, C, H, W) soft labels, or None where the selector makes hard labels only.
        pixel_weight: (B, H, W) float32 weights for the loss, or None where every selected pixel counts 1.
        predicted: (B, H, W) int64, the class the network predicts at every pixel, selected or not.
    """

    labels: Tensor
    confidence: Tensor
    soft: Tensor | None = None
    pixel_weight: Tensor | None = None
    predicted: Tensor | None = None
