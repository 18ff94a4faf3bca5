"""The objects on the street, drawn at ``x`` with the foot at ``y`` and ``s`` reference pixels per metre."""

from __future__ import annotations

from selftrain_seg.datasets._streets_backdrop import Backdrop, darken
from selftrain_seg.datasets._streets_canvas import Canvas, Dice, convex, shade, trapezoid
from selftrain_seg.datasets._streets_palette import CARS, CLOTHES, Palette

POLE, LIGHT, SIGN, VEGETATION, PERSON, RIDER, CAR, BICYCLE = 4, 5, 6, 7, 9, 10, 11, 12


class Brush:
    """Canvas, dice and colours that every object is drawn with."""

    def __init__(self, canvas: Canvas, drop: Backdrop, dice: Dice, palette: Palette) -> None:
        self.canvas = canvas
        self.drop = drop
        self.dice = dice
        self.palette = palette

    def shadow(self, x: float, y: float, half_width: float, half_height: float) -> None:
        """Darken the ground under an object."""
        a, b = half_width, half_height
        points = [
            (x - 0.7 * a, y - b),
            (x + 0.7 * a, y - b),
            (x + a, y),
            (x + 0.7 * a, y + b),
            (x - 0.7 * a, y + b),
            (x - a, y),
        ]
        darken(self.drop, *convex(self.canvas.view, points), 0.55)

    def tree(self, x: float, y: float, s: float) -> None:
        """A trunk and a crown of overlapping tufts, or a conifer."""
        canvas, dice = self.canvas, self.dice
        height, radius = dice.between(3.6, 5.0) * s, dice.between(0.9, 1.45) * s
        crown = max(y - height, dice.between(-3.0, 4.0))
        trunk = canvas.paint(VEGETATION, self.palette.colour("trunk"))
        leaf = self.palette.colour("leaf")
        self.shadow(x, y, 0.5 * radius, 0.18 * s)
        width = max(1.6, 0.22 * s)
        canvas.polygon(trunk, trapezoid(x, crown, y, 0.8 * width, 1.15 * width))
        if dice.chance(0.25):
            for step in range(3):
                paint = canvas.paint(VEGETATION, shade(leaf, 0.72 + 0.14 * step))
                bottom = y - 0.9 * s - 0.75 * step * radius
                canvas.polygon(paint, trapezoid(x, bottom - 1.6 * radius, bottom, 0.1, (1.7 - 0.4 * step) * radius))
            return
        for tuft in range(6):
            paint = canvas.paint(VEGETATION, shade(leaf, 0.74 + 0.08 * tuft))
            fx, fy = dice.between(-0.65, 0.65), dice.between(-0.55, 0.45) - 0.06 * tuft
            size = dice.between(0.5, 0.72) * radius
            canvas.ellipse(paint, x + fx * radius, crown + fy * radius, size, 0.92 * size)

    def _pole(self, x: float, y: float, s: float) -> float:
        """A pole; returns the row of its top, which is kept inside the picture."""
        canvas, dice = self.canvas, self.dice
        colour = self.palette.colour("pole")
        width = max(2.25, 0.18 * s)
        top = max(y - dice.between(3.2, 4.2) * s, dice.between(0.5, 5.0))
        self.shadow(x, y, 1.4 * width, 0.5 * width)
        canvas.rectangle(canvas.paint(POLE, colour), x - 0.5 * width, top, x + 0.5 * width, y)
        canvas.rectangle(canvas.paint(POLE, shade(colour, 0.78)), x, top, x + 0.5 * width, y)
        return top

    def lamp_post(self, x: float, y: float, s: float, inward: float) -> None:
        """A pole with an arm that reaches over the road."""
        canvas, dice = self.canvas, self.dice
        top = self._pole(x, y, s) + 0.6
        arm = canvas.paint(POLE, self.palette.colour("pole"))
        canvas.line(arm, x, top, x + inward * dice.between(0.7, 1.3) * s, top + 0.3, max(1.5, 0.12 * s))

    def traffic_light(self, x: float, y: float, s: float, inward: float) -> None:
        """A pole that carries three lamps, one of them on."""
        canvas, dice = self.canvas, self.dice
        top = self._pole(x, y, s)
        width, height = max(3.7, 0.46 * s), max(8.2, 1.12 * s)
        x += inward * dice.between(-0.1, 0.7) * width
        top = max(top - 0.25 * height, dice.between(0.3, 2.0))
        housing = self.palette.colour("housing")
        canvas.rectangle(canvas.paint(LIGHT, housing), x - 0.5 * width, top, x + 0.5 * width, top + height)
        on = dice.below(3)
        for lamp, name in enumerate(("red_lamp", "amber_lamp", "green_lamp")):
            colour = self.palette.colour(name if lamp == on else "dark_lamp")
            paint = canvas.paint(LIGHT, colour)
            canvas.ellipse(paint, x, top + height * (0.19 + 0.31 * lamp), 0.37 * width, 0.14 * height)

    def sign_post(self, x: float, y: float, s: float) -> None:
        """A pole with a round, square or triangular sign."""
        canvas, dice = self.canvas, self.dice
        top = self._pole(x, y, s)
        radius = max(2.9, 0.38 * s) * dice.between(0.95, 1.2)
        centre = max(top + 0.3 * radius, radius + dice.between(0.3, 2.0))
        shape = dice.below(4)
        white = self.palette.colour("white_sign")
        if shape == 0:  # prohibition: a red ring on white
            canvas.ellipse(canvas.paint(SIGN, self.palette.colour("red_sign")), x, centre, radius, radius)
            canvas.ellipse(canvas.paint(SIGN, white), x, centre, 0.52 * radius, 0.52 * radius)
        elif shape == 1:  # mandatory: blue
            canvas.ellipse(canvas.paint(SIGN, self.palette.colour("blue_sign")), x, centre, radius, radius)
            canvas.line(canvas.paint(SIGN, white), x, centre - 0.4 * radius, x, centre + 0.4 * radius, 0.3 * radius)
        elif shape == 2:  # a yellow board
            board = canvas.paint(SIGN, self.palette.colour("yellow_sign"))
            canvas.rectangle(board, x - 1.1 * radius, centre - 0.85 * radius, x + 1.1 * radius, centre + 0.85 * radius)
            ink = canvas.paint(SIGN, self.palette.colour("housing"))
            canvas.line(ink, x - 0.6 * radius, centre, x + 0.6 * radius, centre, 0.32 * radius)
        else:  # warning: a triangle
            edge = canvas.paint(SIGN, self.palette.colour("red_sign"))
            canvas.polygon(edge, trapezoid(x, centre - 1.2 * radius, centre + 0.9 * radius, 0.0, 2.5 * radius))
            inner = canvas.paint(SIGN, self.palette.colour("yellow_sign"))
            canvas.polygon(inner, trapezoid(x, centre - 0.4 * radius, centre + 0.5 * radius, 0.0, 1.2 * radius))

    def car(self, x: float, y: float, s: float, oncoming: bool) -> None:
        """A car seen from the front or from behind."""
        canvas, dice = self.canvas, self.dice
        w, h = dice.between(1.7, 2.0) * s, dice.between(1.3, 1.55) * s
        body, glass = self.palette.one_of(CARS), self.palette.colour("glass")
        self.shadow(x, y - 0.03 * h, 0.62 * w, 0.11 * h)
        tyre = canvas.paint(CAR, self.palette.colour("tyre"))
        for end in (-0.39, 0.39):
            canvas.rectangle(tyre, x + end * w - 0.1 * w, y - 0.3 * h, x + end * w + 0.1 * w, y)
        canvas.polygon(canvas.paint(CAR, shade(body, 1.12)), trapezoid(x, y - h, y - 0.56 * h, 0.60 * w, 0.88 * w))
        canvas.polygon(canvas.paint(CAR, glass), trapezoid(x, y - 0.93 * h, y - 0.58 * h, 0.53 * w, 0.77 * w))
        gleam = canvas.paint(CAR, shade(glass, 1.6))
        canvas.polygon(gleam, trapezoid(x - 0.16 * w, y - 0.93 * h, y - 0.58 * h, 0.06 * w, 0.10 * w))
        main = canvas.paint(CAR, body)
        canvas.polygon(main, trapezoid(x, y - 0.60 * h, y - 0.34 * h, 0.92 * w, 1.0 * w))
        canvas.rectangle(main, x - 0.5 * w, y - 0.34 * h, x + 0.5 * w, y - 0.13 * h)
        bumper = canvas.paint(CAR, shade(body, 0.66))
        canvas.rectangle(bumper, x - 0.48 * w, y - 0.24 * h, x + 0.48 * w, y - 0.12 * h)
        lamp = canvas.paint(CAR, self.palette.colour("head_lamp" if oncoming else "tail_lamp"))
        for end in (-0.40, 0.40):
            canvas.ellipse(lamp, x + end * w, y - 0.42 * h, 0.085 * w, 0.075 * h)
        if oncoming:
            grille = canvas.paint(CAR, shade(body, 0.45))
            canvas.rectangle(grille, x - 0.22 * w, y - 0.44 * h, x + 0.22 * w, y - 0.32 * h)
        plate = canvas.paint(CAR, self.palette.colour("plate"))
        canvas.rectangle(plate, x - 0.13 * w, y - 0.27 * h, x + 0.13 * w, y - 0.17 * h)

    def person(self, x: float, y: float, s: float) -> None:
        """A pedestrian, standing or in mid-stride."""
        canvas, dice = self.canvas, self.dice
        h = dice.between(1.58, 1.88) * s
        cloth, trousers = self.palette.one_of(CLOTHES), self.palette.colour("trousers")
        skin, hair = self.palette.colour("skin"), self.palette.colour("hair")
        stride, lean = dice.between(0.03, 0.15) * h, dice.sign()
        broad = dice.between(0.25, 0.31) * h
        self.shadow(x, y, 0.7 * broad, 0.05 * h)
        leg = max(1.1, 0.115 * h)
        hip = y - 0.46 * h
        far = canvas.paint(PERSON, shade(trousers, 0.75))
        canvas.line(far, x + 0.05 * h * lean, hip, x + stride * lean, y - 0.4 * leg, leg)
        near = canvas.paint(PERSON, trousers)
        canvas.line(near, x - 0.05 * h * lean, hip, x - stride * lean, y - 0.4 * leg, leg)
        arm = max(0.9, 0.075 * h)
        sleeve = canvas.paint(PERSON, shade(cloth, 0.78))
        swing = 0.06 * h * lean
        canvas.line(sleeve, x - 0.46 * broad, y - 0.78 * h, x - 0.62 * broad + swing, y - 0.47 * h, arm)
        canvas.line(sleeve, x + 0.46 * broad, y - 0.78 * h, x + 0.62 * broad + swing, y - 0.47 * h, arm)
        torso = canvas.paint(PERSON, cloth)
        canvas.polygon(torso, trapezoid(x, y - 0.84 * h, y - 0.43 * h, broad, 0.82 * broad))
        canvas.ellipse(canvas.paint(PERSON, hair), x, y - 0.925 * h, 0.085 * h, 0.085 * h)
        canvas.ellipse(canvas.paint(PERSON, skin), x, y - 0.895 * h, 0.07 * h, 0.07 * h)

    def bicycle(self, x: float, y: float, s: float, facing: float) -> None:
        """A bicycle seen from the side."""
        canvas = self.canvas
        colour = self.palette.colour("bicycle")
        r, base = 0.42 * s, 0.56 * s
        self.shadow(x, y, base + r, 0.12 * s)
        wheel = canvas.paint(BICYCLE, colour)
        thick = max(1.6, 0.15 * s)
        for end in (-base, base):
            canvas.ellipse(wheel, x + end, y - r, r, r, hole=max(0.0, 1.0 - thick / r))
        frame = canvas.paint(BICYCLE, shade(colour, 0.84))
        bar = max(1.3, 0.1 * s)
        seat = (x - facing * 0.22 * s, y - 0.92 * s)
        crank = (x - facing * 0.05 * s, y - 0.36 * s)
        fork = (x + facing * 0.40 * s, y - 0.95 * s)
        for a, b in (
            ((x - facing * base, y - r), crank),
            (crank, seat),
            (crank, (fork[0], fork[1] + 0.2 * s)),
            (seat, (fork[0], fork[1] + 0.12 * s)),
            ((x + facing * base, y - r), fork),
        ):
            canvas.line(frame, *a, *b, bar)

    def rider(self, x: float, y: float, s: float, facing: float) -> None:
        """A rider on a bicycle."""
        canvas, dice = self.canvas, self.dice
        self.bicycle(x, y, s, facing)
        jersey, skin = self.palette.colour("jersey"), self.palette.colour("skin")
        hip = (x - facing * 0.20 * s, y - 0.98 * s)
        neck = (x + facing * 0.10 * s, y - 1.52 * s)
        knee = (x + facing * dice.between(0.08, 0.22) * s, y - dice.between(0.62, 0.78) * s)
        leg = canvas.paint(RIDER, self.palette.colour("trousers"))
        canvas.line(leg, *hip, *knee, max(1.4, 0.19 * s))
        canvas.line(leg, *knee, x - facing * 0.02 * s, y - 0.30 * s, max(1.2, 0.15 * s))
        canvas.line(canvas.paint(RIDER, jersey), *hip, *neck, max(2.4, 0.38 * s))
        sleeve = canvas.paint(RIDER, shade(jersey, 0.78))
        canvas.line(sleeve, neck[0], neck[1] + 0.1 * s, x + facing * 0.42 * s, y - 1.04 * s, max(1.0, 0.12 * s))
        head = (neck[0] + facing * 0.06 * s, neck[1] - 0.22 * s)
        canvas.ellipse(canvas.paint(RIDER, skin), *head, 0.14 * s, 0.17 * s)
        helmet = canvas.paint(RIDER, self.palette.colour("helmet"))
        canvas.ellipse(helmet, head[0], head[1] - 0.09 * s, 0.16 * s, 0.11 * s)
