"""Copy-paste of small classes: enlarge their regions and paste them at random positions of another image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.mining.mixed import MixedBatch, blend, check_batch
from selftrain_seg.ops.components import connected_components
from selftrain_seg.ops.fitting import Places, fit, topmost
from selftrain_seg.ops.numbers import integers, near
from selftrain_seg.ops.random import check_generator, uniform
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["paste_classes"]

_MOST_REGIONS = 255


def paste_classes(
    images: Tensor,
    labels: Tensor,
    class_weight: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    source: tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor | None] | None = None,
    companions: Mapping[int, Sequence[int]] | None = None,
    protected: Sequence[int] = (),
    scale: tuple[float, float] = (1.0, 2.5),
    min_class_pixels: int = 50,
    min_pixels: int = 20,
    most: int = 16,
    ignore_index: int = IGNORE_INDEX,
    generator: torch.Generator | None = None,
) -> MixedBatch:
    """Paste the regions of a small class into each image and its labels (the tail class copy-paste of DT-ST).

    For each image, with the source image at the same position in the batch:

    1. A class c is drawn with probability ``∝ class_weight[c]`` among those with at least ``min_class_pixels`` pixels.
    2. Its regions are found: 8-connected components of class c and its ``companions`` with at least ``min_pixels``
       pixels of class c.
    3. Each region is enlarged by its own factor, drawn uniformly from ``scale`` (image bilinearly, label and weight by
       nearest neighbour), and pasted at a uniformly drawn position inside the image. Regions that do not fit are left
       out. Where regions overlap, the one further down in the source is on top.

    If the source has no such class, or the class no such region, nothing is pasted. No host synchronisation on a GPU.
    Differs from DT-ST, which pastes any number of regions: here at most ``most``.

    Args:
        images: (B, D, H, W), any dtype: the images pasted onto; gradients flow. Integer images are enlarged by nearest
            neighbour.
        labels: (B, H, W), integer: their labels or pseudo-labels.
        class_weight: (C,), floating point, on any device: relative probability of each class; a class with 0, a
            negative value or NaN is never drawn. DT-ST: ``1 - r`` with
            ``r = RunningConfidenceSelector.running_confidence`` for the tail classes, 0 for others.
        pixel_weight: (B, H, W), floating point: their pixel weights in the loss; None for none.
        source: (images, labels) or (images, labels, pixel_weight) to paste from, of the same shapes and dtypes, such as
            images that a sampler chose, with the labels that ``ReliabilityBank.filter`` kept. None takes the batch
            itself, shifted by one. If only one of the two has weights, those of the other are 1.
        companions: maps a class to the classes pasted with it: ``{17: [12], 18: [12], 6: [5], 7: [5]}`` in DT-ST pastes
            motorcycles and bicycles with their riders, and lights and signs with their poles, but not the reverse.
        protected: labels that are never covered, such as classes in the foreground; include ``ignore_index`` to keep
            unlabelled pixels.
        scale: (low, high), above 0; (1, 2.5) in DT-ST.
        min_class_pixels: at least 1; 50 in DT-ST.
        min_pixels: at least 1; 20 in DT-ST.
        most: maximum number of regions pasted into an image, from 1 to 255. If there are more, ``most`` consecutive
            ones in reading order (cyclic, from a uniformly drawn first one) are pasted, so all are equally likely.
        ignore_index: label of the pixels without a class. They are never pasted, nor are labels outside [0, C).
        generator: source of the random numbers, on the device of ``images``; None for torch's default one.

    Returns:
        The mixed batch, in the order of ``images``; a copy.

    Raises:
        TypeError: ``images`` is not a tensor, ``labels`` is not an integer tensor or ``pixel_weight`` is not a
            floating-point tensor, likewise for ``source``; ``class_weight`` is not a floating-point tensor; an end of
            ``scale`` is not a number; ``min_class_pixels``, ``min_pixels``, ``most`` or a class in ``companions`` or
            ``protected`` is not an int; ``companions`` is not a mapping.
        ValueError: ``images`` is not (B, D, H, W); ``labels`` or ``pixel_weight`` does not fit it or has no pixels;
            ``source`` is not two or three tensors of the same shapes and dtypes; ``class_weight`` is not (C,) with
            C of at least 1; a class in ``companions`` is not in [0, C); ``scale`` is not (low, high) with
            0 < low ≤ high ≤ 1e6; ``min_class_pixels`` or ``min_pixels`` is below 1, ``most`` outside [1, 255];
            ``ignore_index`` is a class; a tensor or the generator is on another device.

    References:
        Zhao et al., Towards Better Stability and Adaptability: Improve Online Self-Training for Model Adaptation
        in Semantic Segmentation, CVPR 2023. Ghiasi et al., Simple Copy-Paste, CVPR 2021, arXiv:2012.07177.

    Example:
        >>> import torch
        >>> from selftrain_seg.mining import paste_classes
        >>> labels = torch.zeros(2, 6, 9, dtype=torch.long)
        >>> labels[1, 2:4, 3:5] = 1
        >>> images = labels[:, None].float()
        >>> tail = torch.tensor([0.0, 1.0])
        >>> mixed = paste_classes(images, labels, tail, scale=(2, 2), min_class_pixels=4, min_pixels=4)
        >>> mixed.labels.sum((1, 2)), mixed.pasted.sum((1, 2))  # 2 × 2 pixels enlarged to 4 × 4
        (tensor([16,  4]), tensor([16,  0]))
    """
    others = check_batch(images, labels, pixel_weight, source)
    _check_class_weight(class_weight)
    _checks.check_ignore_index(ignore_index, len(class_weight))
    class_weight = near(class_weight.detach(), images)
    _check_companions(companions, len(class_weight))
    for label in protected:
        _checks.check_count(label, "protected", minimum=-(2**63))
    low, high = _check_scale(scale)
    _checks.check_count(min_class_pixels, "min_class_pixels")
    _checks.check_count(min_pixels, "min_pixels")
    _checks.check_count(most, "most")
    if most > _MOST_REGIONS:
        raise ValueError(f"`most`: expected at most {_MOST_REGIONS}, got {most}")
    check_generator(generator, images)

    draws = uniform((len(images), 2 + 3 * most), images.device, generator, torch.float64)
    classes = others[1].long()
    outside = (classes < 0) | (classes >= len(class_weight)) | (classes == ignore_index)
    classes = torch.where(outside, len(class_weight), classes)
    drawn = _draw_class(classes, class_weight, min_class_pixels, draws[:, 0])
    company = _company(classes, drawn, companions or {}, len(class_weight))
    numbers = _number_regions(classes, drawn, company, min_pixels, most, draws[:, 1])
    factor = low + (high - low) * draws[:, 2 : 2 + most]
    places = fit(numbers, factor, draws[:, 2 + most :].reshape(len(images), most, 2))
    top = topmost(numbers, places)

    origins = _origins(top, places)
    moved = (
        _enlarge(others[0], origins),
        _take(others[1], origins.nearest),
        None if others[2] is None else _take(others[2], origins.nearest),
    )
    pasted = top > 0
    if protected:
        kept = integers([int(label) for label in protected], labels.device)
        pasted = pasted & (labels[:, None] != kept[:, None, None]).all(1)
    return blend((images, labels, pixel_weight), moved, pasted)


def _draw_class(classes: Tensor, class_weight: Tensor, min_pixels: int, chance: Tensor) -> Tensor:
    """(B,): a drawn class with enough pixels; C + 1, which no pixel has, if there is none."""
    counts = torch.zeros(len(classes), len(class_weight) + 1, dtype=torch.int64, device=classes.device)
    one = torch.ones((), dtype=torch.int64, device=classes.device)
    counts.scatter_add_(1, classes.flatten(1), one.expand(classes.flatten(1).shape))
    wanted = class_weight.detach().double().nan_to_num(0.0).clamp(min=0)
    sums = torch.where(counts[:, :-1] >= min_pixels, wanted, 0.0).cumsum(1)
    drawn = (sums <= chance[:, None] * sums[:, -1:]).sum(1)
    return torch.where(sums[:, -1] > 0, drawn, len(class_weight) + 1)


def _company(classes: Tensor, drawn: Tensor, companions: Mapping[int, Sequence[int]], num_classes: int) -> Tensor:
    """(B, H, W) bool: pixels of the drawn class and its companions."""
    own = classes == rearrange(drawn, "b -> b 1 1")
    pairs = {(int(one), int(other)) for one, others in companions.items() for other in others}
    if not pairs:
        return own
    # Rows: the classes, "no label", "no class drawn". Columns: the classes, "no label".
    width = num_classes + 1
    travel = torch.zeros((num_classes + 2) * width, dtype=torch.bool, device=classes.device)
    travel.index_fill_(0, integers(sorted(one * width + other for one, other in pairs), classes.device), True)
    rows = travel.view(-1, width).index_select(0, drawn)
    return own | rows.gather(1, classes.flatten(1)).view(classes.shape)


def _number_regions(
    classes: Tensor, drawn: Tensor, company: Tensor, min_pixels: int, most: int, chance: Tensor
) -> Tensor:
    """(B, H, W) uint8: number, from 1 to ``most``, of the region that the pixel belongs to; 0 elsewhere."""
    roots = connected_components(company).flatten(1)
    own = (classes == rearrange(drawn, "b -> b 1 1")).flatten(1)
    sizes = torch.zeros_like(roots, dtype=torch.int32).scatter_add_(1, roots, own.int())
    large = sizes >= min_pixels
    rank = large.cumsum(1)
    count = rank[:, -1:]
    first = torch.where(count > most, (chance[:, None] * count).floor().long(), 0)
    number = (rank - 1 - first).remainder(count.clamp(min=1)) + 1
    number = torch.where(large & (number <= most), number, 0).to(torch.uint8)
    return torch.where(company, number.gather(1, roots).view(classes.shape), 0)


class _Origins(NamedTuple):
    """Source pixels of each pixel, according to the region on top; arbitrary where there is no region."""

    nearest: Tensor  # (B, H · W) int64, index of the nearest pixel
    around: Tensor  # (B, 2, 2, H · W) int64, the four pixels to interpolate: (above, below) × (left, right)
    down: Tensor  # (B, H · W) float64, weight of the lower pixels
    right: Tensor  # (B, H · W) float64, weight of the right pixels


def _origins(top: Tensor, places: Places) -> _Origins:
    height, width = top.shape[1:]
    region = top.long().sub_(1).clamp_(min=0) * (height + width)
    rows = (region + torch.arange(height, device=top.device)[:, None]).flatten(1)
    columns = region.add_(torch.arange(height, height + width, device=top.device)).flatten(1)
    where, share = places.where.transpose(1, 2).flatten(2), places.share.flatten(1)
    above, left = (where.gather(2, at[:, None].expand(-1, 3, -1)) for at in (rows, columns))
    above = above * width
    around = above[:, 1:, None] + left[:, None, 1:]
    return _Origins(above[:, 0] + left[:, 0], around, share.gather(1, rows), share.gather(1, columns))


def _take(maps: Tensor, pixels: Tensor) -> Tensor:
    """Gather (B, H, W) maps or (B, D, H, W) images at pixel indices (B, H · W)."""
    if maps.ndim == 3:
        return maps.flatten(1).gather(1, pixels).view(maps.shape)
    return _at(maps, pixels).view(maps.shape)


def _at(images: Tensor, pixels: Tensor) -> Tensor:
    """(B, D, N): the values at N pixel indices."""
    return images.flatten(2).gather(2, pixels[:, None].expand(-1, images.shape[1], -1))


def _enlarge(images: Tensor, origins: _Origins) -> Tensor:
    if not images.is_floating_point():
        return _take(images, origins.nearest)
    down, right = (share.to(images.dtype)[:, None, :] for share in (origins.down, origins.right))
    corners = _at(images, origins.around.flatten(1)).view(*images.shape[:2], 2, 2, origins.nearest.shape[1])
    left, behind = corners.unbind(3)
    upper, lower = left.lerp(behind, right[:, :, None]).unbind(2)
    out: Tensor = upper.lerp(lower, down).view(images.shape)
    return out


def _check_companions(companions: Mapping[int, Sequence[int]] | None, num_classes: int) -> None:
    if companions is not None and not isinstance(companions, Mapping):
        raise TypeError(f"`companions`: expected a mapping of classes to classes, got {type(companions).__name__}")
    for label, others in (companions or {}).items():
        if not isinstance(others, Sequence):
            raise TypeError(f"`companions[{label}]`: expected a list of classes, got {type(others).__name__}")
        for each in (label, *others):
            _checks.check_count(each, "companions", minimum=0)
            if each >= num_classes:
                raise ValueError(f"`companions`: expected classes in [0, {num_classes}), got {each}")


def _check_class_weight(class_weight: Tensor) -> None:
    _checks.check_tensor(class_weight, "class_weight")
    if class_weight.ndim != 1 or len(class_weight) == 0:
        raise ValueError(f"`class_weight`: expected (C,), got {tuple(class_weight.shape)}")
    if not class_weight.is_floating_point():
        raise TypeError(f"`class_weight`: expected a floating-point dtype, got {class_weight.dtype}")


def _check_scale(scale: tuple[float, float]) -> tuple[float, float]:
    if not isinstance(scale, (tuple, list)) or len(scale) != 2:
        raise ValueError(f"`scale`: expected (low, high), got {scale!r}")
    _checks.check_real(scale[0], "scale[0]", 0.0, 1e6, open_low=True)
    _checks.check_real(scale[1], "scale[1]", float(scale[0]), 1e6)
    return float(scale[0]), float(scale[1])
