"""One synthetic street: placement of the objects, labels and image."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from selftrain_seg.datasets._streets_appearance import SOURCE_SHIFT, TARGET_SHIFT, _Shift, develop
from selftrain_seg.datasets._streets_backdrop import Street, draw_backdrop
from selftrain_seg.datasets._streets_canvas import CAMERA_M, FOCAL_PX, Bytes, Canvas, Dice, View
from selftrain_seg.datasets._streets_objects import Brush
from selftrain_seg.datasets._streets_palette import Palette
from selftrain_seg.types import IGNORE_INDEX

DOMAINS = ("source", "target")
SPLITS = ("train", "val")
_SHIFTS = {"source": SOURCE_SHIFT, "target": TARGET_SHIFT}

BORDERED = 0.3  # share of objects with a band of ignored pixels around them
BONNET = 0.3  # share of images with the bonnet of the recording car, ignored, at the bottom


class Sample(NamedTuple):
    """One street, as bytes.

    Attributes:
        image: (H, W, 3) uint8.
        labels: (H, W) uint8, classes 0 to 12 or 255.
        instances: (H, W) uint8, the number of the object from 1; 0 for the background.
    """

    image: Bytes
    labels: Bytes
    instances: Bytes


class _Placed(NamedTuple):
    below_px: float  # foot below the horizon, reference pixels
    x: float  # on the picture, reference pixels
    draw: Callable[..., None]
    more: tuple[object, ...]  # further arguments of ``draw``


def render(seed: int, domain: str, split: str, index: int, size: tuple[int, int]) -> Sample:
    """Render one street; the same arguments give the same bytes on every machine.

    The geometry depends on ``size`` only through its aspect ratio.
    """
    dice = Dice((seed, DOMAINS.index(domain), SPLITS.index(split), index))
    shift = _SHIFTS[domain]
    severity = dice.between(*shift.severity)
    palette = Palette(severity * shift.palette, dice)
    view = View.of(*size, dice, shift.horizon_px)
    street = Street.of(view, dice)
    drop = draw_backdrop(view, street, dice, palette, shift.facade)
    canvas = Canvas(view)
    brush = Brush(canvas, drop, dice, palette)
    for thing in sorted(_plan(view, street, shift, dice, brush), key=lambda thing: thing.below_px):
        canvas.begin(FOCAL_PX * CAMERA_M / thing.below_px)
        thing.draw(thing.x, view.horizon + thing.below_px, thing.below_px / CAMERA_M, *thing.more)
    bordered = [False] + [dice.chance(BORDERED) for _ in range(canvas.objects)]
    if dice.chance(BONNET):
        canvas.begin(1.0)
        bordered.append(False)
        paint = canvas.paint(IGNORE_INDEX, palette.colour("bonnet"))
        x, rise = view.wide * dice.between(0.45, 0.55), dice.between(2.5, 6.0)
        canvas.ellipse(paint, x, 64.5, 0.56 * view.wide, rise)

    ids = canvas.paints
    drawn = ids > 0
    classes = np.where(drawn, np.array(canvas.labels, np.uint8)[ids], drop.labels)
    albedo = np.where(drawn[None], np.array(canvas.colours).T[:, ids], drop.albedo)
    depth = np.where(drawn, np.array(canvas.depths)[ids], drop.depth)
    instances = np.array(canvas.instances, np.uint8)[ids]
    shadow = np.where(drawn, 0.0, drop.shadow)
    image = develop(albedo, classes, depth, shadow, view, shift, severity, dice)
    band = _borders(instances, np.array(bordered), max(1, round(0.75 * view.scale)))
    return Sample(image, np.where(band, np.uint8(IGNORE_INDEX), classes), instances)


def _plan(view: View, street: Street, shift: _Shift, dice: Dice, brush: Brush) -> list[_Placed]:
    """Place the objects."""
    things: list[_Placed] = []

    def put(below_px: float, metres: float, draw: Callable[..., None], *more: object) -> None:
        x = view.vanishing_x + metres * below_px / CAMERA_M
        things.append(_Placed(below_px, x, draw, more))

    def edge(side: float) -> float:
        return side * street.road[side > 0]

    def on_walk(side: float) -> float:
        return side * dice.between(street.road[side > 0] + 0.3, street.walk[side > 0] - 0.1)

    for _ in range(dice.below(5)):
        side = dice.sign()
        put(dice.between(5.0, 13.0), edge(side) + side * dice.between(0.6, 2.6) * view.spread, brush.tree)
    for _ in range(2 + dice.below(3)):
        side, roll = dice.sign(), dice.between(0.0, 1.0)
        below, metres = dice.between(6.5, 17.0), edge(side) + side * dice.between(0.2, 0.7)
        if roll < 0.42:
            put(below, metres, brush.traffic_light, -side)
        elif roll < 0.85:
            put(below, metres, brush.sign_post)
        else:
            put(below, metres, brush.lamp_post, -side)
    for side in (-1.0, 1.0):
        for _ in range(dice.below(4)):
            parked = dice.chance(0.35)
            metres = edge(side) - side * 1.0 if parked else 0.5 * edge(side) + dice.between(-0.2, 0.2)
            put(7.0 + 20.5 * dice.between(0.0, 1.0) * dice.between(0.45, 1.0), metres, brush.car, side < 0.0)
    for _ in range(int(dice.between(0.9, 4.0) * shift.people)):
        crossing = dice.chance(0.2)
        metres = dice.between(edge(-1.0), edge(1.0)) if crossing else on_walk(dice.sign())
        put(dice.between(8.0, 19.0), metres, brush.person)
    if dice.chance(0.40 * shift.people):
        put(dice.between(11.5, 24.0), dice.between(0.85, 0.2) * edge(dice.sign()), brush.rider, dice.sign())
    if dice.chance(0.55):
        put(dice.between(11.0, 21.0), on_walk(dice.sign()), brush.bicycle, dice.sign())
    return things


def _borders(instances: Bytes, bordered: npt.NDArray[np.bool_], thickness: int) -> npt.NDArray[np.bool_]:
    """Pixels just outside a bordered object, unless a nearer object covers them."""
    band = np.zeros(instances.shape, np.bool_)
    height, width = instances.shape
    marked = np.where(bordered[instances], instances, 0)
    for step in range(1, thickness + 1):
        for rows, columns in ((step, 0), (-step, 0), (0, step), (0, -step)):
            here = slice(max(rows, 0), height + min(rows, 0)), slice(max(columns, 0), width + min(columns, 0))
            there = (
                slice(max(-rows, 0), height + min(-rows, 0)),
                slice(max(-columns, 0), width + min(-columns, 0)),
            )
            band[here] |= marked[there] > instances[here]
    return band
