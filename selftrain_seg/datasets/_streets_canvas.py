"""Tools to draw a synthetic street: dice, a view, and a canvas of filled shapes.

Lengths are in *reference pixels*, 1/64 of the image height, so a scene has the same geometry at every size. Only
``+ - * /``, comparisons and rounding are used. IEEE 754 specifies them exactly, so a scene is the same bit for bit on
every machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]
Colour = tuple[float, float, float]

REFERENCE_HEIGHT = 64.0
CAMERA_M = 1.3  # height of the camera above the ground
FOCAL_PX = 60.0  # focal length, reference pixels
SKY_M = 1000.0  # depth given to the sky


class Dice:
    """Uniform draws from PCG64, without methods whose stream may change between versions of NumPy."""

    def __init__(self, words: Sequence[int]) -> None:
        self._random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(words))).random

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(self._random())

    def chance(self, probability: float) -> bool:
        return float(self._random()) < probability

    def below(self, count: int) -> int:
        return min(int(float(self._random()) * count), count - 1)

    def sign(self) -> float:
        return 1.0 if float(self._random()) < 0.5 else -1.0

    def grid(self, *shape: int) -> Floats:
        return self._random(shape)

    def ripple(self, view: View, step: float) -> Floats:
        """(W,) value noise in [-1, 1]: random values every ``step`` reference pixels, linear in between."""
        columns = view.xs * (1.0 / step)
        left = columns.astype(np.int64)
        values = 2.0 * self._random(int(view.wide / step) + 2) - 1.0  # the same number at every scale
        return values[left] + (columns - left) * (values[left + 1] - values[left])

    def smooth(self, view: View, step: float) -> Floats:
        """(H, W) value noise in [-1, 1]: random values every ``step`` reference pixels, bilinear in between."""
        rows, columns = view.ys * (1.0 / step), view.xs * (1.0 / step)
        top, left = rows.astype(np.int64), columns.astype(np.int64)
        shape = int(REFERENCE_HEIGHT / step) + 2, int(view.wide / step) + 2  # the same at every scale
        values = 2.0 * self._random(shape) - 1.0
        down, right = (rows - top)[:, None], (columns - left)[None, :]
        bands = values[top] + down * (values[top + 1] - values[top])
        return bands[:, left] + right * (bands[:, left + 1] - bands[:, left])


class View(NamedTuple):
    """The camera: picture size, pixel centres in reference pixels, horizon and vanishing point."""

    height: int
    width: int
    scale: float  # pixels per reference pixel
    xs: Floats
    ys: Floats
    horizon: float
    vanishing_x: float
    spread: float  # lateral stretch of the street, 1 where width = 2 × height

    @classmethod
    def of(cls, height: int, width: int, dice: Dice, horizon_px: float) -> View:
        scale = height / REFERENCE_HEIGHT
        wide = width / scale
        return cls(
            height,
            width,
            scale,
            (np.arange(width, dtype=np.float64) + 0.5) / scale,
            (np.arange(height, dtype=np.float64) + 0.5) / scale,
            25.0 + dice.between(-1.5, 1.5) + horizon_px,
            wide * (0.5 + dice.between(-0.07, 0.07)),
            min(max(wide / 128.0, 0.4), 2.5),
        )

    @property
    def wide(self) -> float:
        return self.width / self.scale

    def rows(self, low: float, high: float) -> slice:
        """The rows whose centres lie in [low, high)."""
        return _span(low, high, self.scale, self.height)

    def columns(self, low: float, high: float) -> slice:
        return _span(low, high, self.scale, self.width)


def _span(low: float, high: float, scale: float, count: int) -> slice:
    first = min(max(math.ceil(low * scale - 0.5), 0), count)
    return slice(first, max(first, min(max(math.ceil(high * scale - 0.5), 0), count)))


class Canvas:
    """Objects painted from far to near: a map of paint numbers, and a table of paints."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.paints: npt.NDArray[np.uint16] = np.zeros((view.height, view.width), np.uint16)
        self.labels: list[int] = [0]
        self.colours: list[Colour] = [(0.0, 0.0, 0.0)]
        self.instances: list[int] = [0]
        self.depths: list[float] = [0.0]
        self.objects = 0
        self._depth = 0.0

    def begin(self, depth: float) -> None:
        """Start the next object, nearer than all before it; ``objects`` is its number, from 1."""
        self.objects, self._depth = self.objects + 1, depth

    def paint(self, label: int, colour: Colour) -> int:
        self.labels.append(label)
        self.colours.append(colour)
        self.instances.append(self.objects)
        self.depths.append(self._depth)
        return len(self.labels) - 1

    def rectangle(self, paint: int, left: float, top: float, right: float, bottom: float) -> None:
        self.paints[self.view.rows(top, bottom), self.view.columns(left, right)] = paint

    def ellipse(self, paint: int, x: float, y: float, rx: float, ry: float, hole: float = 0.0) -> None:
        """Fill an ellipse, or a ring whose inner radius is ``hole`` times the outer."""
        rows, columns = self.view.rows(y - ry, y + ry), self.view.columns(x - rx, x + rx)
        across = (self.view.xs[columns] - x) * (1.0 / rx)
        down = (self.view.ys[rows] - y) * (1.0 / ry)
        radius = (down * down)[:, None] + (across * across)[None, :]
        inside = radius <= 1.0
        if hole > 0.0:
            inside &= radius >= hole * hole
        self.paints[rows, columns][inside] = paint

    def polygon(self, paint: int, points: Sequence[tuple[float, float]]) -> None:
        """Fill a convex polygon, its corners clockwise on the screen."""
        rows, columns, inside = convex(self.view, points)
        self.paints[rows, columns][inside] = paint

    def line(self, paint: int, x0: float, y0: float, x1: float, y1: float, width: float) -> None:
        """Fill a straight stroke with round ends."""
        half = 0.5 * width
        rows = self.view.rows(min(y0, y1) - half, max(y0, y1) + half)
        columns = self.view.columns(min(x0, x1) - half, max(x0, x1) + half)
        across, down = (self.view.xs[columns] - x0)[None, :], (self.view.ys[rows] - y0)[:, None]
        dx, dy = x1 - x0, y1 - y0
        length = max(dx * dx + dy * dy, 1e-9)
        along = (across * (dx / length) + down * (dy / length)).clip(0.0, 1.0)
        ex, ey = across - along * dx, down - along * dy
        self.paints[rows, columns][ex * ex + ey * ey <= half * half] = paint


def convex(view: View, points: Sequence[tuple[float, float]]) -> tuple[slice, slice, npt.NDArray[np.bool_]]:
    """Bounding slices and inside mask of a convex polygon, its corners clockwise on the screen."""
    rows = view.rows(min(y for _, y in points), max(y for _, y in points))
    columns = view.columns(min(x for x, _ in points), max(x for x, _ in points))
    xs, ys = view.xs[columns][None, :], view.ys[rows][:, None]
    inside = np.ones((ys.shape[0], xs.shape[1]), np.bool_)
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        inside &= (ys - y0) * (x1 - x0) >= (xs - x0) * (y1 - y0)
    return rows, columns, inside


def trapezoid(x: float, top: float, bottom: float, top_width: float, bottom_width: float) -> list[tuple[float, float]]:
    """An upright trapezoid centred on ``x``, clockwise."""
    a, b = 0.5 * top_width, 0.5 * bottom_width
    return [(x - a, top), (x + a, top), (x + b, bottom), (x - b, bottom)]


def shade(colour: Colour, factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor
