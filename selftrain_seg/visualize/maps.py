"""Maps of confidence and of selected pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from selftrain_seg import _checks
from selftrain_seg.types import IGNORE_INDEX
from selftrain_seg.visualize import _figure
from selftrain_seg.visualize._host import on_host
from selftrain_seg.visualize.colours import as_bytes, grey

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["confidence_map", "selection_map"]

_ROUNDING = 1e-4  # interpolated values may exceed [0, 1] slightly

_LOWEST, _HIGHEST = -1.0, 11.6  # limits of the colours in log-odds: 0.27 and 1 - 1e-5
_RIGHT, _WRONG, _UNKNOWN = (0, 114, 178), (240, 100, 0), (120, 200, 240)


def confidence_map(confidence: Tensor, *, images: Tensor | None = None) -> Figure:
    """Draw the confidence of every pixel on a log-odds scale, which separates 0.99 from 0.9999.

    Args:
        confidence: (B, H, W), floating point in [0, 1], such as ``PseudoLabels.confidence``; NaN is drawn grey.
        images: (B, 3, H, W), uint8 or floating point in [0, 1], shown beside; None for none.

    Returns:
        A ``matplotlib.figure.Figure`` with one row for each image; ``figure.savefig("confidence.png")`` writes it.
        Colours always range from 0.27 to 1 - 1e-5, so figures can be compared.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: ``confidence`` is not a floating-point tensor.
        ValueError: ``confidence`` is not (B, H, W), is empty or outside [0, 1]; ``images`` does not fit.

    Example:
        >>> import torch
        >>> from selftrain_seg.visualize import confidence_map
        >>> figure = confidence_map(torch.tensor([[[0.5, 0.99, 0.9999]]]))
        >>> figure.axes[0].images[0].get_array().round(1).tolist()  # log-odds
        [[0.0, 4.6, 9.2]]
    """
    _checks.check_tensor(confidence, "confidence")
    if confidence.ndim != 3 or 0 in confidence.shape:
        raise ValueError(
            f"`confidence`: expected (B, H, W) with at least one image and pixel, got {tuple(confidence.shape)}"
        )
    if not confidence.is_floating_point():
        raise TypeError(f"`confidence`: expected a floating-point dtype, got {confidence.dtype}")
    values = on_host(confidence)
    if ((values < -_ROUNDING) | (values > 1 + _ROUNDING)).any():
        raise ValueError(f"`confidence`: expected values in [0, 1], got {np.nanmin(values)} to {np.nanmax(values)}")
    values = np.clip(values, 0.0, 1.0)
    columns = ["confidence"]
    if images is not None:
        images = as_bytes(images)
        _checks.check_map(confidence, images, "confidence")
        columns = ["image", "confidence"]
    ratio = confidence.shape[1] / confidence.shape[2]
    figure, axes = _figure.picture_grid(len(values), columns, ratio, below=0.42)

    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colours = colormaps["viridis"].with_extremes(bad="#b0b0b0")
    scale = Normalize(_LOWEST, _HIGHEST)
    odds = np.ma.masked_invalid(np.clip(_figure.log_odds(values), -40, 40))
    for row, line in enumerate(axes):
        if images is not None:
            _figure.show(line[0], on_host(rearrange(images[row], "c h w -> h w c")))
        line[-1].imshow(odds[row], cmap=colours, norm=scale, interpolation="nearest")
        line[-1].set_axis_off()
    width, height = figure.get_size_inches()
    bar = figure.add_axes((0.12, 0.28 / height, 0.76, 0.1 / height))
    drawn = figure.colorbar(ScalarMappable(scale, colours), cax=bar, orientation="horizontal", extend="both")
    places, names = _figure.log_odds_ticks(_LOWEST, _HIGHEST, most=max(3, int(width / 0.55)))
    drawn.set_ticks(places, labels=names)
    bar.tick_params(labelsize=8, length=2, colors=_figure.LIGHT.text)
    return _figure.plain_text(figure)


def selection_map(
    images: Tensor, labels: Tensor, *, truth: Tensor | None = None, ignore_index: int = IGNORE_INDEX
) -> Figure:
    """Draw the selected pixels and, if ``truth`` is given, which of them got a wrong label.

    Args:
        images: (B, 3, H, W), uint8 or floating point in [0, 1].
        labels: (B, H, W), integer, pseudo-labels; ``ignore_index`` for pixels that are not selected.
        truth: (B, H, W), integer, true labels; ``ignore_index`` where unknown. None for none.
        ignore_index: label of pixels that are not selected, or whose true label is unknown.

    Returns:
        A ``matplotlib.figure.Figure`` with a row for each image: the image and its selection, with the share of
        selected pixels and the share of right labels among those with a known truth. Selected pixels are blue if right
        or if there is no ``truth``, orange if wrong, pale blue if their true label is unknown. Other pixels are grey.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: ``images``, ``labels`` or ``truth`` is not a tensor of a listed dtype.
        ValueError: a shape or device does not fit; there are no images.

    Example:
        >>> import torch
        >>> from selftrain_seg.visualize import selection_map
        >>> labels, truth = torch.tensor([[[0, 1], [1, 255]]]), torch.tensor([[[0, 1], [0, 1]]])
        >>> figure = selection_map(torch.zeros(1, 3, 2, 2), labels, truth=truth)
        >>> figure.axes[1].texts[0].get_text()
        '75.0 % selected, 66.7 % of it right'
    """
    images = as_bytes(images)
    for name, value in (("labels", labels), ("truth", truth)):
        if value is not None:
            _checks.check_integer(value, name)
            _checks.check_map(value, images, name)
    if 0 in labels.shape:
        raise ValueError(f"`images`: expected at least one image and pixel, got {tuple(images.shape)}")
    selected = labels != ignore_index
    known = torch.zeros_like(selected) if truth is None else selected & (truth != ignore_index)
    right = torch.zeros_like(selected) if truth is None else known & (truth == labels)
    legend = [("selected", _RIGHT), ("not selected", (165, 165, 165))]
    if truth is not None:
        legend = [("selected, right", _RIGHT), ("selected, wrong", _WRONG), *legend[1:]]
        if bool((selected & ~known).any()):
            legend.insert(2, ("selected, truth unknown", _UNKNOWN))

    ground = 0.5 * grey(images) + 0.5 * 255 * 0.75  # pale background
    painted = ground
    kinds = ((selected, _RIGHT), (selected & ~known, _UNKNOWN), (known & ~right, _WRONG))
    for region, colour in kinds if truth is not None else kinds[:1]:
        tint = torch.tensor(colour, device=images.device, dtype=torch.float32).view(3, 1, 1)
        painted = torch.where(region[:, None], torch.lerp(grey(images), tint, 0.7), painted)
    pictures = on_host(rearrange(painted.round().to(torch.uint8), "b c h w -> b h w c"))
    originals = on_host(rearrange(images, "b c h w -> b h w c"))

    swatches = [(name, tuple(value / 255 for value in colour)) for name, colour in legend]
    ratio = labels.shape[1] / labels.shape[2]
    figure, axes = _figure.picture_grid(len(pictures), ["image", "selection"], ratio, legend=swatches)
    counts = [on_host(part.flatten(1).double().sum(1)) for part in (selected, known, right)]
    for row, line in enumerate(axes):
        chosen, certain, good = (count[row] for count in counts)
        text = f"{100 * chosen / labels[row].numel():.1f} % selected"
        text += f", {100 * good / certain:.1f} % of it right" if certain else ""
        _figure.show(line[0], originals[row])
        _figure.show(line[1], pictures[row])
        _figure.caption(line[1], text)
    return _figure.plain_text(figure)
