"""Sheets of pictures: images beside label maps, mined crops, mixed images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.mining import MixedBatch, crop
from selftrain_seg.types import IGNORE_INDEX
from selftrain_seg.visualize import _figure
from selftrain_seg.visualize._host import on_host
from selftrain_seg.visualize.colours import as_bytes, colorize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["crop_sheet", "image_sheet", "mixing_sheet"]


def image_sheet(
    columns: Mapping[str, Tensor],
    *,
    palette: Sequence[Sequence[int]] | Tensor | None = None,
    classes: Sequence[str] | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> Figure:
    """Draw images and label maps side by side, one row for each image.

    Args:
        columns: heading -> images (B, 3, H, W), uint8 or floating point in [0, 1], or label maps (B, H, W), integer.
        palette: (red, green, blue) of each class, as for :func:`colorize`; needed for label maps.
        classes: names of the classes, for a legend; None for none.
        ignore_index: label of the pixels painted black, or white if the palette has black.

    Returns:
        A ``matplotlib.figure.Figure``; ``figure.savefig("sheet.png", dpi=150)`` writes it.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: a column is not a tensor of a listed dtype.
        ValueError: there are no columns or no images; a column has another size than the first; ``palette`` is
            missing or too short; ``classes`` does not have one name per colour.

    Example:
        >>> import torch
        >>> from selftrain_seg.visualize import image_sheet
        >>> columns = {"image": torch.rand(2, 3, 4, 8), "prediction": torch.randint(2, (2, 4, 8))}
        >>> figure = image_sheet(columns, palette=[(128, 64, 128), (70, 130, 180)], classes=["road", "sky"])
        >>> [axis.get_title() for axis in figure.axes]
        ['image', 'prediction', '', '']
    """
    if not columns:
        raise ValueError("`columns`: expected at least one column")
    pictures = {heading: _painted(heading, column, palette, ignore_index) for heading, column in columns.items()}
    size = next(iter(pictures.values())).shape
    for heading, picture in pictures.items():
        if picture.shape != size:
            raise ValueError(f"`columns[{heading!r}]`: expected {tuple(size)}, got {tuple(picture.shape)}")
    legend = [] if classes is None else _legend(classes, palette)
    if any(column.ndim == 3 and bool((column == ignore_index).any()) for column in columns.values()) and legend:
        legend.append(("ignored", tuple(value / 255 for value in _ignored(palette))))
    _check_not_empty(pictures)
    figure, axes = _figure.picture_grid(size[0], list(pictures), size[2] / size[3], legend=legend)
    for column, picture in enumerate(pictures.values()):
        for row, image in enumerate(on_host(rearrange(picture, "b c h w -> b h w c"))):
            _figure.show(axes[row][column], image)
    return _figure.plain_text(figure)


def crop_sheet(
    images: Tensor,
    corners: Tensor,
    size: tuple[int, int],
    *,
    labels: Tensor | None = None,
    classes: Tensor | None = None,
) -> Figure:
    """Draw images with the frames of their mined crops, and the crops.

    Args:
        images: (B, 3, H, W), uint8 or floating point in [0, 1].
        corners: (B, 2), integer, (top, left) of each crop, from ``mine_crops``.
        size: (h, w) of the crops in pixels.
        labels: (B, H, W), integer, the labels used for mining; None to outline nothing.
        classes: (K,), integer: regions of these classes are outlined in the crops.

    Returns:
        A ``matplotlib.figure.Figure`` with a row for each image: the image with the crop's frame, and the crop.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: a tensor has another dtype than listed, or ``size`` is not made of ints.
        ValueError: a shape or device does not fit; there are no images; only one of ``labels`` and ``classes`` is
            given.

    Example:
        >>> import torch
        >>> from selftrain_seg.visualize import crop_sheet
        >>> figure = crop_sheet(torch.rand(1, 3, 8, 16), torch.tensor([[2, 5]]), (4, 8))
        >>> frame = figure.axes[0].patches[-1]
        >>> frame.get_xy(), frame.get_width(), frame.get_height()  # pixels are centred on whole numbers
        ((4.5, 1.5), 8, 4)
    """
    images, size = as_bytes(images), _checks.check_size(size)
    if (labels is None) != (classes is None):
        raise ValueError("`labels`, `classes`: expected both or neither")
    if labels is not None and classes is not None:
        _checks.check_integer(labels, "labels")
        _checks.check_map(labels, images, "labels")
        _checks.check_integer(classes, "classes")
    _check_not_empty({"images": images})
    crops, wanted = crop(images, corners, size), None
    if labels is not None and classes is not None:
        wanted = on_host(crop(torch.isin(labels, classes.to(labels.device)), corners, size, fill=0))
    figure, axes = _figure.picture_grid(len(images), ["image", "mined crop"], images.shape[2] / images.shape[3])

    from matplotlib.patches import Rectangle

    originals, cut = (on_host(rearrange(part, "b c h w -> b h w c")) for part in (images, crops))
    for row, ((top, left), line) in enumerate(zip(on_host(corners), axes, strict=True)):
        # Move crops inside the image, as ``crop`` does.
        top = min(max(int(top), 0), max(0, images.shape[2] - size[0]))
        left = min(max(int(left), 0), max(0, images.shape[3] - size[1]))
        _figure.show(line[0], originals[row])
        for colour, width in (("black", 2.6), (_figure.BRIGHT, 1.4)):
            place = (left - 0.5, top - 0.5)
            line[0].add_patch(Rectangle(place, size[1], size[0], fill=False, edgecolor=colour, linewidth=width))
        _figure.show(line[1], cut[row])
        if wanted is not None:
            _figure.outline(line[1], wanted[row])
    return _figure.plain_text(figure)


def mixing_sheet(
    images: Tensor,
    labels: Tensor,
    mixed: MixedBatch,
    palette: Sequence[Sequence[int]] | Tensor,
    *,
    classes: Sequence[str] | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> Figure:
    """Draw a batch and its labels before and after mixing; pasted regions are outlined.

    Args:
        images: (B, 3, H, W), uint8 or floating point in [0, 1], before mixing.
        labels: (B, H, W), integer, before mixing.
        mixed: result of ``class_mix``, ``cut_mix`` or ``paste_classes``.
        palette: (red, green, blue) of each class, as for :func:`colorize`.
        classes: names of the classes, for a legend; None for none.
        ignore_index: label of the pixels painted black, or white if the palette has black.

    Returns:
        A ``matplotlib.figure.Figure`` with a row for each image: image, labels, mixed image, mixed labels.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: a tensor has another dtype than listed.
        ValueError: a shape or device does not fit; there are no images; a label exceeds ``palette``.

    Example:
        >>> import torch
        >>> from selftrain_seg.mining import class_mix
        >>> from selftrain_seg.visualize import mixing_sheet
        >>> images, labels = torch.rand(2, 3, 4, 8), torch.randint(2, (2, 4, 8))
        >>> figure = mixing_sheet(images, labels, class_mix(images, labels), [(128, 64, 128), (70, 130, 180)])
        >>> [axis.get_title() for axis in figure.axes[:4]]
        ['image', 'labels', 'mixed', 'mixed labels']
    """
    columns = {"image": images, "labels": labels, "mixed": mixed.images, "mixed labels": mixed.labels}
    _checks.check_tensor(images, "images")
    _checks.check_map(mixed.pasted, images, "mixed.pasted")
    figure = image_sheet(columns, palette=palette, classes=classes, ignore_index=ignore_index)
    for row, region in enumerate(on_host(mixed.pasted)):
        for column in (2, 3):
            _figure.outline(figure.axes[4 * row + column], region)
    return figure


def _painted(
    heading: str, column: Tensor, palette: Sequence[Sequence[int]] | Tensor | None, ignore_index: int
) -> Tensor:
    """(B, 3, H, W) uint8."""
    name = f"columns[{heading!r}]"
    _checks.check_tensor(column, name)
    if column.ndim == 4:
        return as_bytes(column, name)
    if palette is None:
        raise ValueError(f"`palette`: expected colours for the label maps in `{name}`, got None")
    _checks.check_label_maps(column, name)
    return colorize(column, palette, ignore_index=ignore_index, ignore_color=_ignored(palette))


def _ignored(palette: Sequence[Sequence[int]] | Tensor | None) -> tuple[int, int, int]:
    """Black, or white if a class is black, as VOC's background is."""
    taken = palette is not None and bool((on_host(palette) == 0).all(axis=1).any())
    return (255, 255, 255) if taken else (0, 0, 0)


def _legend(
    classes: Sequence[str], palette: Sequence[Sequence[int]] | Tensor | None
) -> list[tuple[str, tuple[float, ...]]]:
    colours = () if palette is None else on_host(palette)
    if len(colours) != len(classes):
        raise ValueError(f"`classes`: expected one name for each of {len(colours)} colours, got {len(classes)}")
    pairs = zip(classes, colours, strict=True)
    return [(str(name), tuple(float(value) / 255 for value in colour)) for name, colour in pairs]


def _check_not_empty(pictures: Mapping[str, Tensor]) -> None:
    for name, picture in pictures.items():
        if 0 in picture.shape:
            raise ValueError(f"`{name}`: expected at least one image and pixel, got {tuple(picture.shape)}")
