"""Validation of a network on labelled source images restyled to the target."""

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
    """Score a network on labelled source images restyled to target images, without target labels.

    Each source image gets the style of a random image of the corresponding target batch. Use the score to compare
    networks, such as those of several rounds or with different BatchNorm statistics. It does not estimate the score on
    the target, and if the target differs in more than colours (noise, haze), it favours networks that are close to the
    source. Use source images that the network was not trained on.

    Args:
        net: returns logits, or an output that ``selftrain_seg.as_logits`` reads. It is used in evaluation mode, and its
            mode is restored. Images are moved to its device.
        source: batches (images (B, D, H, W), labels (B, H, W)), such as a loader; further elements are ignored.
        target: batches of images of any size, or tuples that start with images. If ``source`` is longer, ``target`` is
            iterated again, so it must not be an iterator then. Shuffle it for random pairs.
        num_classes: C, at least 2.
        restyle: maps (images, styles), with one style per image, to images: ``match_moments``, ``swap_amplitudes``, or
            a ``functools.partial`` of them.
        ignore_index: label of pixels without ground truth; outside [0, C).
        generator: draws the styles, on the device of the images. None uses the same seed in each call, so networks are
            compared on the same images.

    Returns:
        ``ConfusionSummary`` over all images, with ``miou``, and ``iou``, ``precision`` and ``recall`` per class.

    State / distributed:
        Each rank passes its share of ``source``; counts are added over ranks, so every rank must call it.

    Raises:
        TypeError: a batch is not a tuple of images and labels, images are not floating-point tensors, or the network
            returns no logits.
        ValueError: ``target`` is empty, or an iterator that ends before ``source``; or shapes do not match.

    Example:
        >>> import torch
        >>> net = torch.nn.Conv2d(3, 5, 1)
        >>> source = [(torch.rand(2, 3, 8, 8), torch.randint(0, 5, (2, 8, 8))) for _ in range(3)]
        >>> target = [torch.rand(4, 3, 6, 9) for _ in range(2)]
        >>> summary = restyled_confusion(net, source, target, num_classes=5)
        >>> summary.precision.shape, int(summary.counts.sum())
        (torch.Size([5]), 384)
    """
    device = next((tensor.device for tensor in (*net.parameters(), *net.buffers())), None)
    matrix = ConfusionMatrix(num_classes, ignore_index=ignore_index).to(device)
    styles = _cycle(target)
    with evaluating(net):
        for batch in source:
            if not isinstance(batch, (tuple, list)) or len(batch) < 2:
                raise TypeError(f"`source`: expected batches (images, labels), got {type(batch).__name__}")
            images, labels = batch[0], batch[1]
            _checks.check_images(images, "source")
            device = images.device if device is None else device
            images, labels = (part.to(device, non_blocking=True) for part in (images, labels))
            if generator is None:
                generator = torch.Generator(device).manual_seed(0)
            check_generator(generator, images)
            style = next(styles).to(device, non_blocking=True)
            chosen = uniform_integers(1, len(images), images.device, generator)[0] % len(style)
            logits = as_logits(net(restyle(images, style[chosen])), size=labels)
            matrix.to(device).update(logits, labels)
    return matrix.compute()


def _cycle(target: Iterable[Any]) -> Iterator[Tensor]:
    """Iterate over non-empty batches of images, and start again at the end."""
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
                "`target`: expected batches with at least one image, got none (left); pass a list or a loader, "
                "which can be iterated again"
            )
