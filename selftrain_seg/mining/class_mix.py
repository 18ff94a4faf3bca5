"""ClassMix: paste half of the classes of one image onto another, or all pixels of given classes."""

from __future__ import annotations

import torch
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.mining.classes import class_numbers
from selftrain_seg.mining.mixed import MixedBatch, blend, check_batch, check_neighbours
from selftrain_seg.ops.class_draw import draw_classes
from selftrain_seg.ops.indices import check_indices
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
    classes: Tensor | None = None,
    rounding: str = "floor",
    ignore_index: int = IGNORE_INDEX,
    generator: torch.Generator | None = None,
) -> MixedBatch:
    """Paste half of the classes of another image, or all of some classes, onto each image of a batch.

    Of the n classes in the labels of a source image, ``n // 2`` (or ``(n + 1) // 2``) are drawn at random. All of
    their pixels replace image, label and weight of the image at the same position in the batch. Each image draws
    independently. With ``classes``, all pixels of these classes are pasted instead, and nothing is drawn; use this to
    paste small classes of labelled source images, with their true labels, into target images. Pixels without a label
    are never pasted. No host synchronisation.

    Args:
        images: (B, D, H, W), any dtype: the images pasted onto; gradients flow.
        labels: (B, H, W), integer: their labels or pseudo-labels.
        pixel_weight: (B, H, W), floating point: their pixel weights in the loss; None for none.
        source: (images, labels) or (images, labels, pixel_weight) to paste from, of the same shapes and dtypes, such as
            a labelled batch in domain adaptation. None takes the batch itself, shifted by one: image b gets
            classes of image b + 1, and the last image gets classes of the first. If only one of the two has weights,
            those of the other are 1.
        classes: (K,), integer, on any device: numbers of the classes to paste, each in [0, 1024), such as
            those of :func:`classes_below`; K may be 0. None draws half of the classes.
        rounding: how half of an odd number of classes is rounded: ``"floor"`` as in ClassMix, which pastes nothing
            from an image of one class; ``"ceil"`` as in DACS and DAFormer.
        ignore_index: label of the pixels without a class. Values outside [0, 1024) are not classes either.
        generator: source of the random numbers, on the device of ``images``; None for torch's default one.

    Returns:
        The mixed batch, in the order of ``images``; a copy.

    Raises:
        TypeError: ``images`` is not a tensor, ``labels`` is not an integer tensor or ``pixel_weight`` is not a
            floating-point tensor; likewise for ``source``; ``classes`` is not an integer tensor.
        ValueError: ``images`` is not (B, D, H, W); ``labels`` or ``pixel_weight`` does not fit it or has no pixels;
            ``source`` is not two or three tensors of the same shapes and dtypes, or is None for a batch of one
            image; ``classes`` is not (K,), or has a number outside [0, 1024) (on a GPU checked inside
            ``value_checks()`` only); ``rounding`` is not one of the two; a tensor or the generator is on another
            device.

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
        >>> class_mix(images, labels, classes=torch.tensor([0])).labels  # class 0 of the first image
        tensor([[[0, 0, 0, 0]],
        <BLANKLINE>
                [[0, 0, 0, 0]]])
    """
    others = check_batch(images, labels, pixel_weight, source)
    check_neighbours(images, source)
    _checks.check_choice(rounding, "rounding", ("floor", "ceil"))
    check_generator(generator, images)
    if classes is not None:
        return blend((images, labels, pixel_weight), others, _of(classes, others[1], ignore_index))
    keys = uniform_integers(len(labels), _MAX_CLASSES, labels.device, generator)
    drawn = draw_classes(others[1], keys, ignore_index, up=rounding == "ceil")
    return blend((images, labels, pixel_weight), others, drawn)


def _of(classes: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """(B, H, W) bool: whether a pixel is of one of the classes."""
    numbers, wide = class_numbers(classes, labels, "classes"), labels.long()  # in uint8, 1024 would be 0
    check_indices(classes, _MAX_CLASSES, "classes")
    numbers = numbers.clamp(-1, _MAX_CLASSES)  # both are the last entry, which is no class
    chosen = torch.zeros(_MAX_CLASSES + 1, dtype=torch.bool, device=labels.device).index_fill(0, numbers, True)
    known = (wide >= 0) & (wide < _MAX_CLASSES) & (wide != ignore_index)
    return chosen[torch.where(known, wide, 0)] & known
