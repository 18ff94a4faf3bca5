"""The background of a street: sky, ground, and the buildings on both sides."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from selftrain_seg.datasets._streets_canvas import CAMERA_M, FOCAL_PX, SKY_M, Bytes, Dice, Floats, View
from selftrain_seg.datasets._streets_palette import FACADES, Palette

ROAD, SIDEWALK, BUILDING, FENCE, VEGETATION, SKY = 0, 1, 2, 3, 7, 8

_BLOCKS = 12
_HOUSE, _HEDGE, _RAILING, _OPEN = 0, 1, 2, 3
_FRONT_KINDS = ((0.58, _HOUSE), (0.75, _HEDGE), (0.94, _RAILING), (1.0, _OPEN))
_BACK_KINDS = ((0.60, _HOUSE), (0.90, _HEDGE), (1.0, _OPEN))


class Street(NamedTuple):
    """Lateral plan of the street, metres from the camera's axis."""

    road: tuple[float, float]
    walk: tuple[float, float]

    @classmethod
    def of(cls, view: View, dice: Dice) -> Street:
        road = (view.spread * dice.between(2.15, 3.0), view.spread * dice.between(2.15, 3.0))
        walk = (view.spread * dice.between(1.4, 3.3), view.spread * dice.between(1.4, 3.3))
        return cls(road, (road[0] + walk[0], road[1] + walk[1]))


class Backdrop(NamedTuple):
    """The background, per pixel."""

    labels: Bytes  # (H, W)
    albedo: Floats  # (3, H, W)
    depth: Floats  # (H, W) metres
    shadow: Floats  # (H, W) in [0, 1], where the street lies in cast shadow


def _spread(colour: tuple[float, float, float]) -> Floats:
    return np.array(colour)[:, None, None]


def draw_backdrop(view: View, street: Street, dice: Dice, palette: Palette, facade: float) -> Backdrop:
    """Draw the sky, the ground, and the back and front row of blocks on both sides.

    Args:
        view: the camera.
        street: the plan.
        dice: source of random numbers.
        palette: colours.
        facade: factor on the height of houses.
    """
    shape = (view.height, view.width)
    labels = np.full(shape, SKY, np.uint8)
    depth = np.full(shape, SKY_M)
    low = ((view.ys / view.horizon).clip(0.0, 1.0))[None, :, None]
    top, bottom = _spread(palette.colour("sky_top")), _spread(palette.colour("sky_low"))
    albedo = (top + low * (bottom - top)) + np.zeros((1, 1, view.width))
    cover = dice.between(-0.5, 0.5)
    clouds = ((dice.smooth(view, 13.0) + 0.6 * dice.smooth(view, 5.0)) * 0.9 + cover).clip(0.0, 1.0)
    albedo += (0.85 * clouds)[None] * (_spread(palette.colour("cloud")) - albedo)
    shadow = np.zeros(shape)
    drop = Backdrop(labels, albedo, depth, shadow)
    _draw_ground(drop, view, street, dice, palette)
    for side in (-1.0, 1.0):
        walk = street.walk[side > 0]
        far = walk * dice.between(1.5, 2.0)
        _draw_row(drop, view, side, far, _BACK_KINDS, 1.25 * facade, dice, palette)
        _draw_row(drop, view, side, walk, _FRONT_KINDS, facade, dice, palette)
    return drop


def _draw_ground(drop: Backdrop, view: View, street: Street, dice: Dice, palette: Palette) -> None:
    rows = view.rows(view.horizon, 1e9)
    metres = CAMERA_M / np.maximum(view.ys[rows] - view.horizon, 1e-6)  # metres a reference pixel spans on this row
    z = FOCAL_PX * metres
    x = (view.xs - view.vanishing_x)[None, :] * metres[:, None]
    left, right = street.road
    on_road = (x > -left) & (x < right)
    drop.labels[rows] = np.where(on_road, ROAD, SIDEWALK)
    drop.depth[rows] = z[:, None]
    road, walk = _spread(palette.colour("road")), _spread(palette.colour("sidewalk"))
    asphalt = 1.0 + 0.07 * dice.smooth(view, 9.0)[rows]
    lane = 0.5 * (right - left) + dice.between(-0.1, 0.1)
    offset = abs(x - lane)
    tracks = 1.0 - 0.06 * (abs(offset - 0.28 * (left + right)) < 0.28)
    albedo = np.where(on_road, road * (asphalt * tracks), walk * asphalt)

    joints = z * dice.between(0.5, 0.9)
    joint = (joints - np.floor(joints) < 0.16) & (z < 14.0)
    albedo *= 1.0 - 0.10 * (joint[:, None] & ~on_road)

    marking = _spread(palette.colour("marking"))
    thick = np.maximum(0.08, 0.55 * metres)[:, None]
    dash = z * (1.0 / dice.between(2.2, 4.0)) + dice.between(0.0, 1.0)
    marks = (offset < thick) & (dash - np.floor(dash) < 0.55)[:, None]
    if dice.chance(0.35):
        marks |= (abs(x + left - 0.28) < 0.8 * thick) | (abs(x - right + 0.28) < 0.8 * thick)
    if dice.chance(0.22):  # a zebra crossing
        near = dice.between(2.6, 7.0)
        stripe = x * dice.between(1.2, 1.6)
        inside = (x > 0.3 - left) & (x < right - 0.3) & (stripe - np.floor(stripe) < 0.5)
        marks |= inside & ((z > near) & (z < near * 1.45))[:, None]
    wear = 0.7 + 0.15 * dice.smooth(view, 4.0)[rows]
    albedo += (marks & on_road) * wear * (marking - albedo)

    edge = np.maximum(0.1, 0.6 * metres)[:, None]
    curb = (abs(x + left + 0.5 * edge) < 0.5 * edge) | (abs(x - right - 0.5 * edge) < 0.5 * edge)
    albedo = np.where(curb, _spread(palette.colour("curb")), albedo)
    drop.albedo[:, rows] = albedo

    sun = dice.sign()
    dark = np.zeros(x.shape, np.bool_)
    for _ in range(3):
        near, long, slant = dice.between(1.5, 9.0), dice.between(1.15, 1.7), dice.between(-0.35, 0.35)
        reach = dice.between(-1.0, 3.0) * view.spread
        along = z[:, None] + slant * x
        dark |= (along > near) & (along < near * long) & (sun * x > -reach)
    drop.shadow[rows] = dark


def _draw_row(
    drop: Backdrop,
    view: View,
    side: float,
    offset: float,
    kinds: tuple[tuple[float, int], ...],
    height: float,
    dice: Dice,
    palette: Palette,
) -> None:
    """Paint one row of blocks standing ``offset`` metres to one side, their lengths growing with distance."""
    ends, reach = [], dice.between(1.6, 2.6)
    for _ in range(_BLOCKS):
        reach *= dice.between(1.25, 1.75)
        ends.append(reach)
    kind, tops, colours, panes, trims, beds = [], [], [], [], [], []
    for _ in range(_BLOCKS):
        roll = dice.between(0.0, 1.0)
        this = next(k for bound, k in kinds if roll < bound)
        kind.append(this)
        if this == _HOUSE:
            tops.append(height * dice.between(5.2, 11.0))
            colours.append(palette.one_of(FACADES))
            panes.append(palette.colour("lit" if dice.chance(0.12) else "window"))
        elif this == _HEDGE:
            tops.append(dice.between(2.0, 6.0))
            colours.append(palette.colour("leaf"))
            panes.append(colours[-1])
        else:
            tops.append(dice.between(1.3, 1.8) if this == _RAILING else 0.0)
            colours.append(palette.colour("fence"))
            panes.append(palette.colour("gap"))
        trims.append((dice.between(0.85, 1.25), dice.between(0.8, 1.25)))
        beds.append((dice.between(0.38, 0.62), dice.between(0.45, 0.65)))
    bumps = 0.10 * dice.ripple(view, 2.6) + 0.14 * dice.ripple(view, 7.0)
    tint = dice.grid(32, 32)

    middle = view.vanishing_x
    columns = view.columns(middle, 1e9) if side > 0 else view.columns(-1e9, middle)
    distance = side * (view.xs[columns] - middle)
    distance = np.maximum(distance, 1e-6)
    z = FOCAL_PX * offset / distance
    block = np.searchsorted(np.array(ends), z)
    known = block < _BLOCKS
    block = np.minimum(block, _BLOCKS - 1)
    what = np.where(known, np.array(kind)[block], _OPEN)
    top = np.array(tops)[block]
    hedge = what == _HEDGE
    top = np.where(hedge, top * (0.86 + bumps[columns]), top)
    per_pixel = offset / distance
    y = CAMERA_M + (view.horizon - view.ys)[:, None] * per_pixel[None, :]
    inside = (y >= 0.0) & (y < top) & (what != _OPEN)
    if not inside.any():
        return

    colour = np.array(colours).T[:, block][:, None, :]
    pane = np.array(panes).T[:, block][:, None, :]
    trim, bed = np.array(trims)[block].T, np.array(beds)[block].T
    clear = (1.6 - 5.0 * per_pixel).clip(0.0, 1.0)  # details fade out where they would alias
    house, railing = what == _HOUSE, what == _RAILING

    floors, cells = y * (1.05 * trim[0]), z * (0.95 * trim[1])
    floor, cell = np.floor(floors), np.floor(cells)
    up, over = floors - floor, cells - cell
    window = (up > 0.30) & (up < 0.30 + bed[1]) & ((over > 0.2) & (over < 0.2 + bed[0]))
    window &= (floor >= 1) & (floors + 0.6 < top * (1.05 * trim[0]))
    mix = tint[floor.astype(np.int64) & 31, cell.astype(np.int64) & 31]
    bar = (z * 2.2 - np.floor(z * 2.2) >= 0.5) & (y < 0.90 * top) & (y > 0.08 * top)
    part = np.where(house, window * (0.62 + 0.38 * mix), np.where(railing, bar * 0.75, 0.0)) * clear
    paint = colour + part[None] * (pane - colour)

    light = np.where(house & (floors < 1.0), 0.84, 1.0)  # shops at street level
    light = np.where(house & (y > top - 0.28), 1.12, light)  # cornice
    light = np.where(hedge, 0.72 + 0.34 * (y / np.maximum(top, 0.1)), light)
    light *= 1.04 if side > 0 else 0.94
    np.copyto(drop.albedo[:, :, columns], paint * light[None], where=inside[None])
    classes = np.array([BUILDING, VEGETATION, FENCE, SKY], np.uint8)[what]
    np.copyto(drop.labels[:, columns], classes[None, :], where=inside)
    np.copyto(drop.depth[:, columns], z[None, :], where=inside)
    np.copyto(drop.shadow[:, columns], 0.0, where=inside)


def darken(drop: Backdrop, rows: slice, columns: slice, inside: npt.NDArray[np.bool_], factor: float) -> None:
    """Contact shadow: darken the ground, and only the ground, inside a mask."""
    ground = inside & (drop.labels[rows, columns] <= SIDEWALK)
    drop.albedo[:, rows, columns] *= np.where(ground, factor, 1.0)
