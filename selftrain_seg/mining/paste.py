"""Copy-paste of small classes: one of their regions, enlarged, at another place of another image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.mining.mixed import MixedBatch, blend, check_batch
from selftrain_seg.ops.components import connected_components
from selftrain_seg.ops.fitting import Axis, fit
from selftrain_seg.ops.numbers import integers, near
from selftrain_seg.ops.random import check_generator
from selftrain_seg.types import IGNORE_INDEX

__all__ = ["paste_classes"]


def paste_classes(
    images: Tensor,
    labels: Tensor,
    class_weight: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    source: tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor | None] | None = None,
    groups: Sequence[Sequence[int]] = (),
    protected: Sequence[int] = (),
    scale: tuple[float, float] = (1.0, 2.5),
    min_pixels: int = 20,
    ignore_index: int = IGNORE_INDEX,
    generator: torch.Generator | None = None,
) -> MixedBatch:
    """Paste one region of a small class into each image and its labels (the tail class copy-paste of DT-ST).

    For each image, from the source image with the same number:

    1. a class c is drawn with probability ``∝ class_weight[c]`` among those with at least ``min_pixels`` pixels;
    2. one of its regions is drawn uniformly: 8-connected, of at least ``min_pixels`` pixels of class c, together
       with the pixels of the classes that travel with c where they touch;
    3. it is enlarged by a factor drawn uniformly from ``scale``, less where it would not fit (image bilinearly,
       label and weight by the nearest pixel), and put at a uniformly drawn place inside the image.

    Where an image's source has no such class, or the drawn class no such region, nothing is pasted. Call it again
    for a second region. No host synchronisation on a GPU.

    Args:
        images: (B, D, H, W), any dtype: the images pasted onto; gradients flow. Integer images are enlarged by the
            nearest pixel.
        labels: (B, H, W), integer: their labels or pseudo-labels.
        class_weight: (C,), floating point, on any device: how much each class is wanted; 0, negative or NaN for
            never. DT-ST: ``1 - r`` with ``r = RunningConfidenceSelector.running_confidence`` for the tail classes, 0
            for others.
        pixel_weight: (B, H, W), floating point: their pixel weights in the loss; None for none.
        source: (images, labels) or (images, labels, pixel_weight) to paste from, of the same shapes and dtypes, such as
            images that a sampler chose, with the labels that ``ReliabilityBank.filter`` left. None takes the batch
            itself, shifted by one. Where only one side has weights, the other's are 1.
        groups: classes that travel together, such as ``[(12, 17, 18)]``, rider with motorcycle and bicycle.
        protected: labels that are never covered, such as those of classes that stand in front; ``ignore_index``
            among them keeps unlabelled pixels.
        scale: (low, high), above 0; (1, 2.5) in DT-ST.
        min_pixels: at least 1; 20 in DT-ST.
        ignore_index: the label that is no class, so that none of its pixels is pasted; neither are those with
            labels outside [0, C).
        generator: source of the random numbers, on the device of ``images``; None for torch's default one.

    Returns:
        The mixed batch, in the order of ``images``; a copy.

    Raises:
        TypeError: ``images`` is not a tensor, ``labels`` not an integer one, ``pixel_weight`` not a floating-point one,
            or those of ``source`` alike; ``class_weight`` is not a floating-point tensor; an end of ``scale`` is
            not a number; ``min_pixels`` or a class in ``groups`` or ``protected`` is not an int.
        ValueError: ``images`` is not (B, D, H, W); ``labels`` or ``pixel_weight`` does not fit it or has no pixels;
            ``source`` is not two or three tensors of the same shapes and dtypes; ``class_weight`` is not (C,) with
            C of at least 1; a class in ``groups`` is not in [0, C); ``scale`` is not (low, high) with
            0 < low ≤ high < inf; ``min_pixels`` is below 1; a tensor or the generator is on another device.

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
        >>> mixed = paste_classes(images, labels, tail, scale=(2, 2), min_pixels=4)
        >>> mixed.labels.sum((1, 2)), mixed.pasted.sum((1, 2))  # 2 × 2 pixels enlarged to 4 × 4
        (tensor([16,  4]), tensor([16,  0]))
    """
    others = check_batch(images, labels, pixel_weight, source)
    _check_class_weight(class_weight)
    _checks.check_ignore_index(ignore_index, len(class_weight))
    class_weight = near(class_weight.detach(), images)
    _check_groups(groups, len(class_weight))
    for label in protected:
        _checks.check_count(label, "protected", minimum=-(2**63))
    low, high = _check_scale(scale)
    _checks.check_count(min_pixels, "min_pixels")
    check_generator(generator, images)

    draws = torch.rand(len(images), 5, generator=generator, dtype=torch.float64, device=images.device)
    classes = others[1].long()
    outside = (classes < 0) | (classes >= len(class_weight)) | (classes == ignore_index)
    classes = torch.where(outside, len(class_weight), classes)
    drawn = _draw_class(classes, class_weight, min_pixels, draws[:, 0])
    company = _company(classes, drawn, groups, len(class_weight))
    region = _draw_region(classes, drawn, company, min_pixels, draws[:, 1])
    factor = low + (high - low) * draws[:, 2]
    rows, columns = fit(region, factor, draws[:, 3:])

    moved = (
        _enlarge(others[0], rows, columns),
        _take(others[1], rows.nearest, columns.nearest),
        None if others[2] is None else _take(others[2], rows.nearest, columns.nearest),
    )
    pasted = _take(region, rows.nearest, columns.nearest)
    pasted = pasted & rows.inside[:, :, None] & columns.inside[:, None, :]
    if protected:
        kept = integers([int(label) for label in protected], labels.device)
        pasted = pasted & (labels[:, None] != kept[:, None, None]).all(1)
    return blend((images, labels, pixel_weight), moved, pasted)


def _draw_class(classes: Tensor, class_weight: Tensor, min_pixels: int, chance: Tensor) -> Tensor:
    """(B,): a class with enough pixels; C + 1, which no pixel has, where there is none."""
    counts = torch.zeros(len(classes), len(class_weight) + 1, dtype=torch.int64, device=classes.device)
    one = torch.ones((), dtype=torch.int64, device=classes.device)
    counts.scatter_add_(1, classes.flatten(1), one.expand(classes.flatten(1).shape))
    wanted = class_weight.detach().double().nan_to_num(0.0).clamp(min=0)
    sums = torch.where(counts[:, :-1] >= min_pixels, wanted, 0.0).cumsum(1)
    drawn = (sums <= chance[:, None] * sums[:, -1:]).sum(1)
    return torch.where(sums[:, -1] > 0, drawn, len(class_weight) + 1)


def _company(classes: Tensor, drawn: Tensor, groups: Sequence[Sequence[int]], num_classes: int) -> Tensor:
    """(B, H, W) bool: the drawn class and those that travel with it."""
    own = classes == rearrange(drawn, "b -> b 1 1")
    pairs = {(int(one), int(other)) for group in groups for one in group for other in group if one != other}
    if not pairs:
        return own
    # A row for each class, and one for none, with an entry for each class and for pixels without one.
    width = num_classes + 1
    travel = torch.zeros((num_classes + 2) * width, dtype=torch.bool, device=classes.device)
    travel.index_fill_(0, integers(sorted(one * width + other for one, other in pairs), classes.device), True)
    rows = travel.view(-1, width).index_select(0, drawn)
    return own | rows.gather(1, classes.flatten(1)).view(classes.shape)


def _draw_region(classes: Tensor, drawn: Tensor, company: Tensor, min_pixels: int, chance: Tensor) -> Tensor:
    """(B, H, W) bool: a component of the drawn class and its company, empty where there is none."""
    roots = connected_components(company).flatten(1)
    own = (classes == rearrange(drawn, "b -> b 1 1")).flatten(1)
    sizes = torch.zeros_like(roots, dtype=torch.int32).scatter_add_(1, roots, own.int())
    rank = (sizes >= min_pixels).cumsum(1)
    wanted = (chance * rank[:, -1]).floor().long()
    root = (rank <= wanted[:, None]).sum(1)  # past the end where there is none
    return (roots == root[:, None]).view(classes.shape) & company


def _take(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, H, W) maps, or (B, D, H, W) images, at the rows and columns of each image."""
    return _at(_at(maps, rows, -2), columns, -1)


def _at(maps: Tensor, places: Tensor, dim: int) -> Tensor:
    """At the rows (``dim`` -2) or columns (-1) of each image."""
    shape = [1] * maps.ndim
    shape[0], shape[dim] = places.shape
    return maps.gather(dim, places.view(shape).expand(maps.shape))


def _enlarge(images: Tensor, rows: Axis, columns: Axis) -> Tensor:
    if not images.is_floating_point():
        return _take(images, rows.nearest, columns.nearest)
    down = rows.share.to(images.dtype)[:, None, :, None]
    right = columns.share.to(images.dtype)[:, None, None, :]
    upper, lower = (
        _at(line, columns.before, -1).lerp(_at(line, columns.after, -1), right)
        for line in (_at(images, rows.before, -2), _at(images, rows.after, -2))
    )
    return upper.lerp(lower, down)


def _check_groups(groups: Sequence[Sequence[int]], num_classes: int) -> None:
    for group in groups:
        for label in group:
            _checks.check_count(label, "groups", minimum=0)
            if label >= num_classes:
                raise ValueError(f"`groups`: expected classes in [0, {num_classes}), got {label}")


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
