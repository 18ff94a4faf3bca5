"""A network measured on labelled source images that look like the target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from selftrain_seg import _checks
from selftrain_seg.ops.random import check_generator, uniform_integers
from selftrain_seg.outputs import as_logits
from selftrain_seg.restyle.confusion import ConfusionMatrix, ConfusionSummary
from selftrain_seg.restyle.moments import match_moments
from selftrain_seg.teachers._evaluating import evaluating
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["restyled_confusion"]


@torch.no_grad()
def restyled_confusion(
    net: nn.Module,
    source: Iterable[Any],
    target: Iterable[Any],
    *,
    num_classes: int,
    restyle: Callable[[Tensor, Tensor], Tensor] = match_moments,
    ignore_index: int = IGNORE_INDEX,
    generator: torch.Generator | None = None,
) -> ConfusionSummary:
    """Measure a network on labelled source images restyled to look like target images: no target label is used.

    Every source image takes the style of a random image of the target batch beside it. With networks that differ in
    their BatchNorm statistics, or from round to round, the score says which does better on target-like images; its
    height says nothing of the score on the target itself, and where the target differs in more than colours (noise,
    haze) it favours networks near to the source. Give it source images that the network was not trained on: on those
    that it was, a network that has forgotten them seems worse than it is.

    Args:
        net: returns logits, or what ``selftrain_seg.as_logits`` finds them in. It predicts in evaluation mode and
            comes back as it was. Images go to the device of its parameters.
        source: batches (images (B, D, H, W), labels (B, H, W)), as a loader gives; whatever follows is left out.
        target: batches of images, or tuples whose first is images, of any size; begun again where ``source`` is
            longer, so it must be iterable more than once then. Shuffled if you want random partners.
        num_classes: C, at least 2.
        restyle: maps (images, styles), one style for each image, to images: ``match_moments``, ``swap_amplitudes``, or
            ``functools.partial`` of one with other settings.
        ignore_index: label of pixels without truth.
        generator: chooses the styles, on the device of the images; None for one that begins anew at each call, so that
            networks are compared on the same images.

    Returns:
        ``ConfusionSummary`` over all images, with ``miou``, and ``iou``, ``precision`` and ``recall`` of each class.

    State / distributed:
        Each rank gives its share of ``source``; the counts are added over ranks, so every rank must call it.

    Raises:
        TypeError: a batch is no tuple of images and labels, images are no floating-point tensors, or the network
            returns no logits.
        ValueError: ``target`` is empty, or used up before ``source`` is; shapes do not fit.

    Example:
        >>> import torch
        >>> net = torch.nn.Conv2d(3, 5, 1)
        >>> source = [(torch.rand(2, 3, 8, 8), torch.randint(0, 5, (2, 8, 8))) for _ in range(3)]
        >>> target = [torch.rand(4, 3, 6, 9) for _ in range(2)]
        >>> summary = restyled_confusion(net, source, target, num_classes=5)
        >>> summary.precision.shape, int(summary.counts.sum())
        (torch.Size([5]), 384)
    """
    place = next((tensor.device for tensor in (*net.parameters(), *net.buffers())), None)
    matrix = ConfusionMatrix(num_classes, ignore_index=ignore_index).to(place)
    styles = _again_and_again(target)
    with evaluating(net):
        for batch in source:
            if not isinstance(batch, (tuple, list)) or len(batch) < 2:
                raise TypeError(f"`source`: expected batches (images, labels), got {type(batch).__name__}")
            images, labels = batch[0], batch[1]
            _checks.check_images(images, "source")
            place = images.device if place is None else place
            images, labels = (part.to(place, non_blocking=True) for part in (images, labels))
            if generator is None:
                generator = torch.Generator(place).manual_seed(0)
            check_generator(generator, images)
            style = next(styles).to(place, non_blocking=True)
            chosen = uniform_integers(1, len(images), images.device, generator)[0] % len(style)
            logits = as_logits(net(restyle(images, style[chosen])), size=labels)
            matrix.to(place).update(logits, labels)
    return matrix.compute()


def _again_and_again(target: Iterable[Any]) -> Iterator[Tensor]:
    """The batches of images with at least one, from the beginning again at the end."""
    while True:
        empty = True
        for batch in target:
            images = batch[0] if isinstance(batch, (tuple, list)) else batch
            _checks.check_images(images, "target")
            if len(images):
                empty = False
                yield images
        if empty:
            raise ValueError(
                "`target`: expected batches of at least one image, got none (left); an iterator ends, a list or a "
                "loader begins again"
            )
