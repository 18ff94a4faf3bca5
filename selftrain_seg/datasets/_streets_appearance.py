"""Render a scene as an image: texture, and the shift from the game to the camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from selftrain_seg.datasets._streets_canvas import Bytes, Dice, Floats, View


@dataclass(frozen=True)
class _Shift:
    """All differences between the two domains. To retune the benchmark, change only these values.

    The strengths of the appearance are those at severity 1; a severity is drawn for every image.
    """

    severity: tuple[float, float]
    desaturation: float  # share of the way to grey
    palette: float  # share of the way from the game's colours to the camera's
    haze: float  # share of haze at an infinite distance
    haze_m: float  # distance at which half of it is reached
    contrast: float  # share of contrast lost
    gamma: float  # bend of the tone curve, x + gamma (x² - x)
    cast: float  # relative colour cast of a channel, at most
    noise: float  # standard deviation of the sensor noise
    blur: float  # weight of each neighbour, along both axes
    shadow: float  # light lost in cast shadows on the ground
    vignette: float  # light lost in the corners
    exposure: float  # relative jitter of the exposure
    horizon_px: float  # shift of the horizon downwards, reference pixels
    facade: float  # factor on the height of houses
    people: float  # factor on the number of people


SOURCE_SHIFT = _Shift(
    severity=(0.0, 0.0),
    desaturation=0.0,
    palette=0.0,
    haze=0.0,
    haze_m=28.0,
    contrast=0.0,
    gamma=0.0,
    cast=0.0,
    noise=0.0,
    blur=0.0,
    shadow=0.0,
    vignette=0.0,
    exposure=0.08,
    horizon_px=0.0,
    facade=1.0,
    people=1.0,
)
TARGET_SHIFT = _Shift(
    severity=(0.5, 1.0),
    desaturation=0.7,
    palette=0.6,
    haze=0.4,
    haze_m=28.0,
    contrast=0.35,
    gamma=0.3,
    cast=0.06,
    noise=0.03,
    blur=0.125,
    shadow=0.4,
    vignette=0.25,
    exposure=0.08,
    horizon_px=2.0,
    facade=0.8,
    people=1.25,
)

_HAZE = (0.80, 0.82, 0.84)
_GREY = (0.299, 0.587, 0.114)
# road, sidewalk, building, fence, pole, light, sign, vegetation, sky, person, rider, car, bicycle
_FINE = (0.09, 0.08, 0.06, 0.07, 0.04, 0.03, 0.03, 0.20, 0.012, 0.06, 0.06, 0.03, 0.04)
_COARSE = (0.05, 0.05, 0.05, 0.05, 0.03, 0.02, 0.02, 0.26, 0.010, 0.08, 0.06, 0.04, 0.03)


def _table(values: tuple[float, ...]) -> Floats:
    """A per-class table indexed by any uint8 label; ignored pixels get the last entry."""
    table = np.full(256, values[-1])
    table[: len(values)] = values
    return table


_FINE_TABLE, _COARSE_TABLE = _table(_FINE), _table(_COARSE)


def develop(
    albedo: Floats,
    classes: Bytes,
    depth: Floats,
    shadow: Floats,
    view: View,
    shift: _Shift,
    severity: float,
    dice: Dice,
) -> Bytes:
    """Render the image of a scene, (H, W, 3) uint8.

    Args:
        albedo: (3, H, W) colours without texture; overwritten.
        classes: (H, W) class of every pixel, none ignored.
        depth: (H, W) metres.
        shadow: (H, W) cast shadow in [0, 1].
        view: the camera.
        shift: the domain.
        severity: strength of the shift in this image.
        dice: source of random numbers.
    """
    image = albedo
    exposure = 1.0 + shift.exposure * dice.between(-1.0, 1.0)
    tint = [1.0 + severity * shift.cast * dice.between(-1.0, 1.0) for _ in range(3)]
    gamma = severity * shift.gamma * dice.between(-1.0, 1.0)
    texture = 1.0 + _COARSE_TABLE[classes] * dice.smooth(view, 2.3)
    fine = dice.grid(2, view.height, view.width)
    texture += _FINE_TABLE[classes] * (fine[0] + fine[1] - 1.0)
    texture *= exposure
    if severity > 0.0:
        texture *= 1.0 - (severity * shift.shadow) * shadow
    image *= texture
    if severity > 0.0:
        grey = _GREY[0] * image[0] + _GREY[1] * image[1] + _GREY[2] * image[2]
        image += (severity * shift.desaturation) * (grey - image)
        haze = (severity * shift.haze) * (depth / (depth + shift.haze_m))
        image += haze * (np.array(_HAZE)[:, None, None] - image)
        across = (view.xs - 0.5 * view.wide) * (2.0 / view.wide)
        down = (view.ys - 32.0) * (1.0 / 32.0)
        corners = (down * down)[:, None] + (across * across)[None, :]
        image *= 1.0 - (0.5 * severity * shift.vignette) * corners
        image *= np.array(tint)[:, None, None]
        image += (severity * shift.contrast) * (0.5 - image)
        np.clip(image, 0.0, 1.0, out=image)
        image += gamma * (image * image - image)
        image = _blur(image, severity * shift.blur)
        sensor = dice.grid(2, 3, view.height, view.width)
        # the sum of two uniforms has variance 1/6
        image += (severity * shift.noise * 2.449489742783178) * (sensor[0] + sensor[1] - 1.0)
    np.clip(image, 0.0, 1.0, out=image)
    return np.ascontiguousarray((image * 255.0 + 0.5).astype(np.uint8).transpose(1, 2, 0))


def _blur(image: Floats, side: float) -> Floats:
    """Three taps along each axis, ``side`` for both neighbours, edges repeated."""
    wide = np.concatenate((image[:, :, :1], image, image[:, :, -1:]), axis=2)
    image = (1.0 - 2.0 * side) * image + side * (wide[:, :, :-2] + wide[:, :, 2:])
    tall = np.concatenate((image[:, :1], image, image[:, -1:]), axis=1)
    return (1.0 - 2.0 * side) * image + side * (tall[:, :-2] + tall[:, 2:])
