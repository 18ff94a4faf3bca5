"""ClassMix: half of the classes of one image on top of another."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.mining.mixed import MixedBatch, blend, check_batch, check_neighbours
from selftrain_seg.ops.class_draw import draw_classes
from selftrain_seg.ops.random import check_generator, uniform_integers
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["class_mix"]

_MAX_CLASSES = 1024


def class_mix(
    images: Tensor,
    labels: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    source: tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor | None] | None = None,
    rounding: str = "floor",
    ignore_index: int = IGNORE_INDEX,
    generator: torch.Generator | None = None,
) -> MixedBatch:
    """Paste half of the classes of another image onto each image of a batch.

    Of the n classes that the labels of a source image show, ``n // 2`` are drawn at random (or
    ``(n + 1) // 2``), and all of their pixels replace those of the image with the same number in the batch: image,
    label and weight. Classes are counted and drawn in each image for itself, and pixels without a label are no
    class: they are never pasted. No host synchronisation.

    Args:
        images: (B, D, H, W), any dtype: the images pasted onto; gradients flow.
        labels: (B, H, W), integer: their labels or pseudo-labels.
        pixel_weight: (B, H, W), floating point: their pixel weights in the loss; None for none.
        source: (images, labels) or (images, labels, pixel_weight) to paste from, of the same shapes and dtypes, such as
            a labelled batch in domain adaptation. None takes the batch itself, shifted by one: image b gets
            classes of image b + 1, the last one of the first. Where only one side has weights, the other's are 1.
        rounding: of half an odd number of classes: ``"floor"`` as ClassMix was published, so that nothing is
            pasted from an image of one class; ``"ceil"`` as in DACS and DAFormer.
        ignore_index: the label that is no class; neither are values outside [0, 1024).
        generator: source of the random numbers, on the device of ``images``; None for torch's default one.

    Returns:
        The mixed batch, in the order of ``images``; a copy.

    Raises:
        TypeError: ``images`` is not a tensor, ``labels`` not an integer one, ``pixel_weight`` not a floating-point one,
            or those of ``source`` alike.
        ValueError: ``images`` is not (B, D, H, W); ``labels`` or ``pixel_weight`` does not fit it or has no pixels;
            ``source`` is not two or three tensors of the same shapes and dtypes, or None for a batch of one
            image; ``rounding`` is another word; a
            tensor or the generator is on another device.

    References:
        Olsson et al., ClassMix: Segmentation-Based Data Augmentation for Semi-Supervised Learning, WACV 2021,
        arXiv:2007.07936. Tranheden et al., DACS, WACV 2021, arXiv:2007.08702.

    Example:
        >>> import torch
        >>> from selftrain_seg.mining import class_mix
        >>> labels = torch.tensor([[[0, 0, 0, 0]], [[1, 255, 1, 255]]])
        >>> images = labels[:, None].float()
        >>> mixed = class_mix(images, labels, rounding="ceil")  # the only class of each image goes to the other
        >>> mixed.labels
        tensor([[[1, 0, 1, 0]],
        <BLANKLINE>
                [[0, 0, 0, 0]]])
        >>> mixed.pasted[0]
        tensor([[ True, False,  True, False]])
    """
    others = check_batch(images, labels, pixel_weight, source)
    check_neighbours(images, source)
    _checks.check_choice(rounding, "rounding", ("floor", "ceil"))
    check_generator(generator, images)
    keys = uniform_integers(len(labels), _MAX_CLASSES, labels.device, generator)
    drawn = draw_classes(others[1], keys, ignore_index, up=rounding == "ceil")
    return blend((images, labels, pixel_weight), others, drawn)
