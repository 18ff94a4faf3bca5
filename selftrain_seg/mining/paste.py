"""Copy-paste of small classes: one of their regions, enlarged, at another place of another image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.mining.mixed import MixedBatch, blend, check_batch
from selftrain_seg.ops.components import connected_components
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
        class_weight: (C,), floating point: how much each class is wanted; 0, negative or NaN for never. DT-ST:
            ``1 - r`` with ``r = RunningConfidenceSelector.running_confidence`` for the tail classes, 0 for others.
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
    _check_class_weight(class_weight, images)
    travel = _travel(groups, len(class_weight)).to(images.device, non_blocking=True)
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
    region = _draw_region(classes, drawn, travel, min_pixels, draws[:, 1])
    factor = low + (high - low) * draws[:, 2]
    rows, columns = _fit(region, factor, draws[:, 3:])

    moved = (
        _enlarge(others[0], rows, columns),
        _take(others[1], rows.nearest, columns.nearest),
        None if others[2] is None else _take(others[2], rows.nearest, columns.nearest),
    )
    pasted = _take(region, rows.nearest, columns.nearest)
    pasted = pasted & rows.inside[:, :, None] & columns.inside[:, None, :]
    if protected:
        kept = torch.tensor(list(protected)).to(labels.device, non_blocking=True)
        pasted = pasted & ~torch.isin(labels, kept)
    return blend((images, labels, pixel_weight), moved, pasted)


class _Axis:
    """Where the pixels of one axis of the result come from, when ``length`` pixels from ``start`` are enlarged.

    Attributes:
        inside: (B, n) bool, whether the pixel lies in the enlarged box.
        nearest: (B, n) int64, the pixel that covers it.
        before: (B, n) int64, the pixel whose centre is next before its own; ``after`` the one behind that.
        share: (B, n) float64, how far from the centre of ``before`` to that of ``after``.
    """

    def __init__(self, start: Tensor, length: Tensor, size: Tensor, place: Tensor, pixels: int) -> None:
        step = torch.arange(pixels, device=start.device) - place[:, None]
        start, length, size = start[:, None], length[:, None], size[:, None]
        self.inside = (step >= 0) & (step < size)
        step = torch.where(self.inside, step, 0)
        self.nearest = (start + (2 * step + 1) * length // (2 * size)).clamp(0, pixels - 1)
        twice = (2 * step + 1) * length - size  # 2·size·(distance from the first centre), so that no half is lost
        self.before = (start + twice.div(2 * size, rounding_mode="floor")).clamp(0, pixels - 1)
        self.after = (start + twice.div(2 * size, rounding_mode="floor") + 1).clamp(0, pixels - 1)
        self.share = twice.remainder(2 * size).double() / (2 * size)


def _draw_class(classes: Tensor, class_weight: Tensor, min_pixels: int, chance: Tensor) -> Tensor:
    """(B,): a class with enough pixels; any number where there is none."""
    counts = torch.zeros(len(classes), len(class_weight) + 1, dtype=torch.int64, device=classes.device)
    one = torch.ones((), dtype=torch.int64, device=classes.device)
    counts.scatter_add_(1, classes.flatten(1), one.expand(classes.flatten(1).shape))
    wanted = class_weight.detach().double().nan_to_num(0.0).clamp(min=0)
    sums = torch.where(counts[:, :-1] >= min_pixels, wanted, 0.0).cumsum(1)
    drawn = (sums <= chance[:, None] * sums[:, -1:]).sum(1)
    return torch.where(sums[:, -1] > 0, drawn, len(class_weight))


def _draw_region(classes: Tensor, drawn: Tensor, travel: Tensor, min_pixels: int, chance: Tensor) -> Tensor:
    """(B, H, W) bool: a component of the drawn class and its company, empty where there is none."""
    company = travel[drawn].gather(1, classes.flatten(1)).view(classes.shape)
    roots = connected_components(company).flatten(1)
    own = ((classes == rearrange(drawn, "b -> b 1 1")) & company).flatten(1)
    sizes = torch.zeros_like(roots, dtype=torch.int32).scatter_add_(1, roots, own.int())
    rank = (sizes >= min_pixels).cumsum(1)
    wanted = (chance * rank[:, -1]).floor().long()
    root = (rank <= wanted[:, None]).sum(1)  # past the end where there is none
    return (roots == root[:, None]).view(classes.shape) & company


def _fit(region: Tensor, factor: Tensor, chance: Tensor) -> tuple[_Axis, _Axis]:
    """The two axes of the region's box, enlarged as far as the image allows and put at a random place."""
    starts, lengths = [], []
    for dim in (2, 1):
        shown = region.any(dim)
        pixels = torch.arange(shown.shape[1], device=region.device)
        first = torch.where(shown, pixels, shown.shape[1] - 1).amin(1)
        last = torch.where(shown, pixels, 0).amax(1)
        starts.append(first)
        lengths.append((last - first + 1).clamp(min=1))
    room = [pixels / length.double() for pixels, length in zip(region.shape[1:], lengths, strict=True)]
    factor = torch.minimum(factor, torch.minimum(*room))
    axes = []
    for axis, side in enumerate(region.shape[1:]):
        size = (lengths[axis] * factor).round().long().clamp(1, side)
        place = (chance[:, axis] * (side - size + 1)).floor().long()
        axes.append(_Axis(starts[axis], lengths[axis], size, place, side))
    return axes[0], axes[1]


def _take(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, H, W) maps, or (B, D, H, W) images, at the rows and columns of each image."""
    middle = (1,) * (maps.ndim - 3)
    rows = rows.view(len(maps), *middle, rows.shape[1], 1).expand(maps.shape)
    columns = columns.view(len(maps), *middle, 1, columns.shape[1]).expand(maps.shape)
    return maps.gather(-2, rows).gather(-1, columns)


def _enlarge(images: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
    if not images.is_floating_point():
        return _take(images, rows.nearest, columns.nearest)
    down = rows.share.to(images.dtype)[:, None, :, None]
    right = columns.share.to(images.dtype)[:, None, None, :]
    upper = _take(images, rows.before, columns.before).lerp(_take(images, rows.before, columns.after), right)
    lower = _take(images, rows.after, columns.before).lerp(_take(images, rows.after, columns.after), right)
    return upper.lerp(lower, down)


def _travel(groups: Sequence[Sequence[int]], num_classes: int) -> Tensor:
    """(C + 1, C + 1) bool: which classes go along with which; the last row and column are no class."""
    travel = torch.eye(num_classes + 1, dtype=torch.bool)
    for group in groups:
        for label in group:
            _checks.check_count(label, "groups", minimum=0)
            if label >= num_classes:
                raise ValueError(f"`groups`: expected classes in [0, {num_classes}), got {label}")
        members = torch.tensor(list(group), dtype=torch.long)
        travel[members[:, None], members] = True
    travel[-1, -1] = False
    return travel


def _check_class_weight(class_weight: Tensor, images: Tensor) -> None:
    _checks.check_tensor(class_weight, "class_weight")
    if class_weight.ndim != 1 or len(class_weight) == 0:
        raise ValueError(f"`class_weight`: expected (C,), got {tuple(class_weight.shape)}")
    if not class_weight.is_floating_point():
        raise TypeError(f"`class_weight`: expected a floating-point dtype, got {class_weight.dtype}")
    _checks.check_device(class_weight, images, "class_weight")


def _check_scale(scale: tuple[float, float]) -> tuple[float, float]:
    if not isinstance(scale, (tuple, list)) or len(scale) != 2:
        raise ValueError(f"`scale`: expected (low, high), got {scale!r}")
    _checks.check_real(scale[0], "scale[0]", 0.0, 1e6, open_low=True)
    _checks.check_real(scale[1], "scale[1]", float(scale[0]), 1e6)
    return float(scale[0]), float(scale[1])
