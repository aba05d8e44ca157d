"""Outlines of the pocket world's objects, characters and backgrounds, as flat coloured polygons."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Point = tuple[float, float]
Rgb = tuple[int, ...]
INK: Rgb = (28, 26, 30)
WHITE: Rgb = (250, 250, 246)


@dataclass(frozen=True)
class Shape:
    """A filled polygon in pixels; `outlined` ones (objects) get a contour, others (ground) do not."""

    points: tuple[Point, ...]
    rgb: Rgb
    outlined: bool = False


@dataclass(frozen=True)
class Part:
    """A polygon in the object's frame (-1..1, y down); `tone` is a factor on its colour, or a colour."""

    points: Sequence[Point]
    tone: float | Rgb = 1.0


def _polygon(points: str, tone: float | Rgb = 1.0) -> Part:
    """From "x,y x,y ...", as SVG writes it."""
    pairs = (point.split(",") for point in points.split())
    return Part([(float(x), float(y)) for x, y in pairs], tone)


def _ellipse(
    x: float, y: float, rx: float, ry: float, *, start: float = 0.0, stop: float = 1.0, n: int = 40
) -> list[Point]:
    turns = [start + (stop - start) * i / n for i in range(n + 1)]
    return [(x + rx * math.cos(2 * math.pi * t), y + ry * math.sin(2 * math.pi * t)) for t in turns]


def _box(x0: float, y0: float, x1: float, y1: float) -> list[Point]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _star() -> list[Part]:
    turns = [(1.0 if i % 2 == 0 else 0.42, math.pi * i / 5 - math.pi / 2) for i in range(10)]
    return [Part([(r * math.cos(a), r * math.sin(a)) for r, a in turns])]


def _heart() -> list[Part]:
    turns = [2 * math.pi * i / 60 for i in range(60)]
    x = [16 * math.sin(t) ** 3 for t in turns]
    y = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
    return [Part([(a / 16.5, -(b + 2) / 16.0) for a, b in zip(x, y, strict=True)])]


def _moon() -> list[Part]:
    outer = _ellipse(0, 0, 1, 1, start=0.12, stop=0.88)
    return [Part(outer + _ellipse(0.42, 0, 0.72, 0.74, start=0.86, stop=0.14))]


def _cross() -> list[Part]:
    top, bottom = "-0.34,-1 0.34,-1 0.34,-0.34 1,-0.34 1,0.34 0.34,0.34", "0.34,1 -0.34,1 -0.34,0.34"
    return [_polygon(f"{top} {bottom} -1,0.34 -1,-0.34 -0.34,-0.34")]


def _ring() -> list[Part]:
    return [Part(_ellipse(0, 0, 1, 1) + _ellipse(0, 0, 0.5, 0.5, start=1.0, stop=0.0))]


def _tree() -> list[Part]:
    right = "0,-1 0.5,-0.4 0.3,-0.4 0.75,0.15 0.45,0.15 0.95,0.65"
    crown = _polygon(f"{right} -0.95,0.65 -0.45,0.15 -0.75,0.15 -0.3,-0.4 -0.5,-0.4")
    return [Part(_box(-0.15, 0.6, 0.15, 1.0), 0.55), crown]


def _fish() -> list[Part]:
    tail, eye = _polygon("0.45,0 1,-0.55 0.88,0 1,0.55", 0.75), _ellipse(-0.62, -0.12, 0.11, 0.11)
    return [tail, Part(_ellipse(-0.2, 0, 0.8, 0.55)), Part(eye, WHITE)]


def _flower() -> list[Part]:
    angles = [2 * math.pi * i / 5 - math.pi / 2 for i in range(5)]
    petals = [Part(_ellipse(0.56 * math.cos(a), 0.56 * math.sin(a), 0.43, 0.43)) for a in angles]
    return [*petals, Part(_ellipse(0, 0, 0.34, 0.34), 0.55)]


def _house() -> list[Part]:
    body, roof = Part(_box(-0.72, -0.1, 0.72, 1.0)), _polygon("-1,-0.1 0,-1 1,-0.1", 0.62)
    return [body, roof, Part(_box(-0.18, 0.38, 0.22, 1.0), 0.4)]


CAT_HEAD = "-0.85,-1 -0.35,-0.6 0.35,-0.6 0.85,-1 0.95,0.1 0.6,0.75 0,0.95 -0.6,0.75 -0.95,0.1"


def _cat() -> list[Part]:
    eyes = [Part(_ellipse(x, 0.0, 0.16, 0.2), WHITE) for x in (-0.4, 0.4)]
    return [_polygon(CAT_HEAD), *eyes, _polygon("-0.14,0.36 0.14,0.36 0,0.52", 0.4)]


def _robot() -> list[Part]:
    legs = [Part(_box(x, 0.7, x + 0.3, 1.0), 0.6) for x in (-0.5, 0.2)]
    arms = [Part(_box(x, 0.1, x + 0.25, 0.6), 0.6) for x in (-0.95, 0.7)]
    head = Part(_box(-0.5, -0.85, 0.5, -0.1))
    eyes = [Part(_box(x, -0.6, x + 0.22, -0.35), WHITE) for x in (-0.34, 0.12)]
    return [*legs, *arms, Part(_box(-0.68, 0.0, 0.68, 0.75), 0.85), head, *eyes]


def _bolt() -> list[Part]:
    """The character of class "robot": round teal head with one eye, striped yellow body, red antenna."""
    teal, sun, red = (24, 150, 150), (248, 200, 40), (222, 50, 50)
    stripes = [Part(_box(-0.66, y, 0.66, y + 0.14), INK) for y in (0.18, 0.46)]
    legs = [Part(_box(x, 0.7, x + 0.3, 1.0), teal) for x in (-0.5, 0.2)]
    antenna = [Part(_box(-0.06, -1.05, 0.06, -0.7), INK), Part(_ellipse(0, -1.05, 0.2, 0.2), red)]
    rings = ((0.6, 0.5, teal), (0.3, 0.3, WHITE), (0.14, 0.14, INK))
    face = [Part(_ellipse(0, -0.36, rx, ry), rgb) for rx, ry, rgb in rings]
    return [*legs, *antenna, Part(_box(-0.68, 0.0, 0.68, 0.75), sun), *stripes, *face]


def _miso() -> list[Part]:
    """The character of class "cat": white with one ginger side, green eyes and a blue scarf."""
    ginger, blue, green = (232, 130, 42), (38, 84, 210), (46, 170, 80)
    ginger_side = _polygon("0,-0.6 0.35,-0.6 0.85,-1 0.95,0.1 0.6,0.75 0,0.95", ginger)
    scarf = _polygon("-0.8,0.62 0.8,0.62 0.7,1 0.35,1 0.35,1.25 0.05,1.25 0.05,1 -0.7,1", blue)
    eyes = [Part(_ellipse(x, 0.0, 0.2, 0.24), green) for x in (-0.42, 0.42)]
    pupils = [Part(_ellipse(x, 0.0, 0.07, 0.18), INK) for x in (-0.42, 0.42)]
    return [_polygon(CAT_HEAD, WHITE), ginger_side, *eyes, *pupils, scarf]


OBJECTS: dict[str, Callable[[], list[Part]]] = {
    "ball": lambda: [Part(_ellipse(0, 0, 1, 1)), Part(_ellipse(-0.35, -0.38, 0.22, 0.18), 1.5)],
    "box": lambda: [Part(_box(-0.86, -0.86, 0.86, 0.86))],
    "cone": lambda: [_polygon("0,-1 0.95,0.85 -0.95,0.85")],
    "star": _star,
    "heart": _heart,
    "ring": _ring,
    "cross": _cross,
    "moon": _moon,
    "house": _house,
    "tree": _tree,
    "fish": _fish,
    "flower": _flower,
    "cat": _cat,
    "robot": _robot,
}
CHARACTERS: dict[str, Callable[[], list[Part]]] = {"bolt": _bolt, "miso": _miso}
CLASS_WORDS = {"bolt": "robot", "miso": "cat"}


def _shade(rgb: Rgb, tone: float | Rgb) -> Rgb:
    if isinstance(tone, tuple):
        return tone
    return tuple(int(c + (255 - c) * (tone - 1)) if tone > 1 else int(c * tone) for c in rgb)


def shapes_of(name: str, rgb: Rgb, centre: Point, radius: float, tilt: float) -> list[Shape]:
    """An object's or character's shapes in pixels, turned by `tilt` radians about its centre."""
    c, s = math.cos(tilt), math.sin(tilt)

    def place(p: Point) -> Point:
        return (centre[0] + radius * (c * p[0] - s * p[1]), centre[1] + radius * (s * p[0] + c * p[1]))

    parts = (OBJECTS | CHARACTERS)[name]()
    return [Shape(tuple(place(p) for p in part.points), _shade(rgb, part.tone), True) for part in parts]


def backdrop(name: str, w: int, h: int, rng: random.Random) -> list[Shape]:
    """The background's shapes in an image of w x h pixels; `rng` moves hills, stars and stripes a little."""
    phase, shift = rng.uniform(0, 2 * math.pi), rng.uniform(-0.03, 0.03)

    def box(rgb: Rgb, top: float = 0.0) -> Shape:
        """All below `top`, a share of the height."""
        return Shape(tuple(_box(0, h * top, w, h)), rgb)

    def hill(level: float, swell: float, rgb: Rgb, *, start: float = phase) -> Shape:
        """Ground below a wavy line at `level` (share of the height), its waves `swell` high."""
        waves = [level + shift + swell * math.sin(start + 2.2 * math.pi * i / 24) for i in range(25)]
        return Shape((*((w * i / 24, h * y) for i, y in enumerate(waves)), (w, h), (0, h)), rgb)

    def dots(count: int, below: float, rgb: Rgb) -> list[Shape]:
        side = min(w, h)
        xyr = [(rng.random() * w, rng.random() * h * below, rng.uniform(0.012, 0.022)) for _ in range(count)]
        return [Shape(tuple(_ellipse(x, y, side * r, side * r, n=8)), rgb) for x, y, r in xyr]

    if name == "meadow":
        hills = [hill(0.52, 0.04, (150, 205, 110), start=phase + 2), hill(0.66, 0.05, (112, 184, 80))]
        return [box((168, 214, 245)), *hills]
    if name == "beach":
        return [box((205, 236, 250)), box((50, 140, 196), 0.42 + shift), hill(0.66, 0.02, (240, 220, 164))]
    if name == "night":
        return [box((22, 26, 66)), *dots(16, 0.7, (240, 240, 200)), hill(0.78, 0.05, (38, 46, 58))]
    if name == "snow":
        return [box((176, 188, 206)), hill(0.6, 0.05, (244, 248, 252)), *dots(18, 1.0, (255, 255, 255))]
    if name == "desert":
        hills = [hill(0.55, 0.07, (222, 150, 84), start=phase + 2), hill(0.7, 0.06, (204, 120, 62))]
        return [box((252, 206, 150)), *hills]
    stripes = [Shape(tuple(_box(w * i / 6, 0, w * (i + 0.5) / 6, h)), (222, 206, 222)) for i in range(6)]
    return [box((200, 180, 204)), *stripes, box((150, 104, 74), 0.74 + shift)]
