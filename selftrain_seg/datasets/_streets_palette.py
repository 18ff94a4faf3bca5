"""The colour of every material in both domains, and its jitter between objects."""

from __future__ import annotations

from typing import NamedTuple

from selftrain_seg.datasets._streets_canvas import Colour, Dice

_Rgb = tuple[int, int, int]


class _Material(NamedTuple):
    source: _Rgb
    target: _Rgb
    light: float = 0.10  # relative jitter shared by the three channels
    hue: float = 0.04  # jitter of each channel on its own


# name: colour in the game, colour under the camera (approached by `_Shift.palette`), jitter
_MATERIALS: dict[str, _Material] = {
    "road": _Material((86, 86, 96), (112, 110, 106), 0.10, 0.02),
    "marking": _Material((225, 225, 212), (205, 205, 200), 0.06, 0.02),
    "sidewalk": _Material((160, 136, 132), (150, 150, 148), 0.09, 0.02),
    "curb": _Material((196, 188, 180), (176, 176, 172), 0.08, 0.02),
    "brick": _Material((172, 92, 76), (140, 116, 112), 0.14, 0.05),
    "sand": _Material((208, 178, 126), (166, 158, 142), 0.12, 0.05),
    "ochre": _Material((204, 150, 84), (156, 140, 120), 0.12, 0.05),
    "stone": _Material((176, 164, 150), (150, 152, 154), 0.14, 0.05),
    "rose": _Material((190, 124, 118), (152, 134, 136), 0.12, 0.05),
    "slate": _Material((124, 124, 148), (118, 124, 132), 0.14, 0.05),
    "window": _Material((62, 66, 92), (70, 78, 88), 0.25, 0.04),
    "lit": _Material((226, 206, 140), (190, 186, 166), 0.15, 0.05),
    "door": _Material((96, 62, 46), (82, 76, 72), 0.25, 0.06),
    "fence": _Material((128, 92, 58), (104, 100, 92), 0.14, 0.04),
    "gap": _Material((70, 60, 48), (70, 72, 70), 0.12, 0.03),
    "pole": _Material((120, 134, 142), (104, 108, 108), 0.14, 0.03),
    "housing": _Material((40, 44, 36), (50, 52, 48), 0.20, 0.02),
    "red_lamp": _Material((250, 52, 36), (226, 84, 64), 0.05, 0.03),
    "amber_lamp": _Material((250, 184, 40), (230, 180, 84), 0.05, 0.03),
    "green_lamp": _Material((60, 236, 120), (96, 214, 150), 0.05, 0.03),
    "dark_lamp": _Material((76, 66, 50), (76, 74, 66), 0.20, 0.03),
    "yellow_sign": _Material((244, 212, 40), (206, 188, 90), 0.06, 0.04),
    "red_sign": _Material((218, 36, 44), (184, 70, 66), 0.08, 0.04),
    "blue_sign": _Material((36, 84, 206), (62, 92, 158), 0.08, 0.04),
    "white_sign": _Material((240, 240, 234), (220, 220, 216), 0.04, 0.02),
    "leaf": _Material((66, 138, 46), (92, 122, 74), 0.16, 0.05),
    "trunk": _Material((92, 70, 44), (88, 80, 68), 0.14, 0.03),
    "sky_top": _Material((92, 158, 236), (168, 184, 202), 0.05, 0.03),
    "sky_low": _Material((196, 222, 246), (214, 218, 222), 0.04, 0.02),
    "cloud": _Material((246, 248, 252), (232, 234, 236), 0.02, 0.01),
    "skin": _Material((220, 168, 138), (186, 150, 130), 0.22, 0.03),
    "hair": _Material((62, 42, 30), (56, 48, 44), 0.40, 0.03),
    "warm_cloth": _Material((166, 74, 78), (120, 80, 82), 0.30, 0.10),
    "cool_cloth": _Material((112, 92, 128), (86, 86, 108), 0.30, 0.10),
    "pale_cloth": _Material((204, 194, 178), (168, 164, 158), 0.14, 0.06),
    "trousers": _Material((74, 66, 84), (66, 66, 74), 0.35, 0.06),
    "jersey": _Material((56, 112, 226), (76, 106, 168), 0.18, 0.10),
    "helmet": _Material((238, 238, 240), (206, 206, 206), 0.06, 0.06),
    "bicycle": _Material((232, 124, 26), (156, 106, 66), 0.12, 0.05),
    "tyre": _Material((28, 28, 32), (38, 38, 40), 0.20, 0.01),
    "glass": _Material((52, 60, 74), (62, 68, 76), 0.20, 0.03),
    "red_car": _Material((204, 40, 52), (136, 62, 66), 0.20, 0.08),
    "pink_car": _Material((222, 74, 132), (140, 92, 120), 0.18, 0.08),
    "dark_car": _Material((52, 36, 48), (46, 46, 54), 0.40, 0.05),
    "gold_car": _Material((222, 190, 116), (162, 154, 138), 0.14, 0.06),
    "rust_car": _Material((196, 104, 66), (136, 104, 94), 0.18, 0.06),
    "violet_car": _Material((112, 66, 158), (92, 82, 122), 0.20, 0.08),
    "tail_lamp": _Material((240, 60, 44), (200, 70, 60), 0.08, 0.03),
    "head_lamp": _Material((255, 246, 206), (236, 234, 218), 0.03, 0.02),
    "plate": _Material((236, 232, 214), (214, 214, 206), 0.05, 0.02),
    "bonnet": _Material((34, 36, 44), (44, 46, 48), 0.30, 0.03),
}

FACADES = ("brick", "sand", "ochre", "stone", "rose", "slate", "sand", "brick")
CARS = ("red_car", "pink_car", "dark_car", "gold_car", "rust_car", "violet_car", "red_car")
CLOTHES = ("warm_cloth", "cool_cloth", "pale_cloth", "warm_cloth")


class Palette:
    """Colours of one image; ``mix`` is 0 for the game's palette, 1 for the camera's."""

    def __init__(self, mix: float, dice: Dice) -> None:
        self._mix = mix
        self._dice = dice

    def colour(self, name: str) -> Colour:
        """The colour of a new object made of ``name``."""
        material, dice = _MATERIALS[name], self._dice
        light = 1.0 + material.light * dice.between(-1.0, 1.0)
        red, green, blue = (
            light * (source + self._mix * (target - source)) / 255.0 + material.hue * dice.between(-1.0, 1.0)
            for source, target in zip(material.source, material.target, strict=True)
        )
        return red, green, blue

    def one_of(self, names: tuple[str, ...]) -> Colour:
        return self.colour(names[self._dice.below(len(names))])
