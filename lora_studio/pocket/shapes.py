"""Outlines of the pocket world's objects, characters and backgrounds, as flat coloured polygons."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
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

    points: tuple[Point, ...]
    tone: float | Rgb = 1.0


def _ellipse(
    x: float, y: float, rx: float, ry: float, *, start: float = 0.0, stop: float = 1.0, n: int = 40
) -> list[Point]:
    turns = [start + (stop - start) * i / n for i in range(n + 1)]
    return [(x + rx * math.cos(2 * math.pi * t), y + ry * math.sin(2 * math.pi * t)) for t in turns]


def _box(x0: float, y0: float, x1: float, y1: float) -> list[Point]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _part(points: list[Point], tone: float | Rgb = 1.0) -> Part:
    return Part(tuple(points), tone)


def _star(tips: int, inner: float) -> list[Point]:
    radii = [1.0, inner] * tips
    angles = [math.pi * i / tips - math.pi / 2 for i in range(2 * tips)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _heart() -> list[Point]:
    turns = [2 * math.pi * i / 60 for i in range(60)]
    curve = [
        (
            16 * math.sin(t) ** 3,
            13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t),
        )
        for t in turns
    ]
    return [(x / 16.5, -(y + 2) / 16.0) for x, y in curve]


def _moon() -> list[Point]:
    outer = _ellipse(0, 0, 1, 1, start=0.12, stop=0.88)
    inner = _ellipse(0.42, 0, 0.72, 0.74, start=0.86, stop=0.14)
    return outer + inner


def _cross(w: float = 0.34) -> list[Point]:
    right = [(-w, -1.0), (w, -1.0), (w, -w), (1.0, -w), (1.0, w), (w, w)]
    return right + [(-x, -y) for x, y in right]


def _mirrored(half: list[Point]) -> list[Point]:
    """A closed line from the top clockwise: a point in the middle, and the right half."""
    return half + [(-x, y) for x, y in reversed(half[1:])]


def _ring() -> list[Part]:
    outer = _ellipse(0, 0, 1, 1)
    hole = _ellipse(0, 0, 0.5, 0.5, start=1.0, stop=0.0)
    return [_part(outer + hole)]


def _tree() -> list[Part]:
    crown = _mirrored([(0.0, -1.0), (0.5, -0.4), (0.3, -0.4), (0.75, 0.15), (0.45, 0.15), (0.95, 0.65)])
    return [_part(_box(-0.15, 0.6, 0.15, 1.0), 0.55), _part(crown)]


def _fish() -> list[Part]:
    tail = [(0.45, 0.0), (1.0, -0.55), (0.88, 0.0), (1.0, 0.55)]
    return [
        _part(tail, 0.75),
        _part(_ellipse(-0.2, 0, 0.8, 0.55)),
        _part(_ellipse(-0.62, -0.12, 0.11, 0.11), WHITE),
    ]


def _flower() -> list[Part]:
    petals = [
        _part(_ellipse(0.56 * math.cos(a), 0.56 * math.sin(a), 0.43, 0.43))
        for a in [2 * math.pi * i / 5 - math.pi / 2 for i in range(5)]
    ]
    return [*petals, _part(_ellipse(0, 0, 0.34, 0.34), 0.55)]


def _house() -> list[Part]:
    body = _box(-0.72, -0.1, 0.72, 1.0)
    roof = [(-1.0, -0.1), (0.0, -1.0), (1.0, -0.1)]
    return [_part(body), _part(roof, 0.62), _part(_box(-0.18, 0.38, 0.22, 1.0), 0.4)]


def _cat() -> list[Part]:
    head = [
        (-0.85, -1.0),
        (-0.35, -0.6),
        (0.35, -0.6),
        (0.85, -1.0),
        (0.95, 0.1),
        (0.6, 0.75),
        (0.0, 0.95),
        (-0.6, 0.75),
        (-0.95, 0.1),
    ]
    eyes = [_part(_ellipse(x, 0.0, 0.16, 0.2), WHITE) for x in (-0.4, 0.4)]
    nose = _part([(-0.14, 0.36), (0.14, 0.36), (0.0, 0.52)], 0.4)
    return [_part(head), *eyes, nose]


def _robot() -> list[Part]:
    legs = [_part(_box(x, 0.7, x + 0.3, 1.0), 0.6) for x in (-0.5, 0.2)]
    arms = [_part(_box(x, 0.1, x + 0.25, 0.6), 0.6) for x in (-0.95, 0.7)]
    head = _part(_box(-0.5, -0.85, 0.5, -0.1))
    eyes = [_part(_box(x, -0.6, x + 0.22, -0.35), WHITE) for x in (-0.34, 0.12)]
    return [*legs, *arms, _part(_box(-0.68, 0.0, 0.68, 0.75), 0.85), head, *eyes]


def _bolt() -> list[Part]:
    """The character of class "robot": round teal head with one eye, striped yellow body, red antenna."""
    teal, sun, red = (24, 150, 150), (248, 200, 40), (222, 50, 50)
    stripes = [_part(_box(-0.66, y, 0.66, y + 0.14), INK) for y in (0.18, 0.46)]
    legs = [_part(_box(x, 0.7, x + 0.3, 1.0), teal) for x in (-0.5, 0.2)]
    antenna = [_part(_box(-0.06, -1.05, 0.06, -0.7), INK), _part(_ellipse(0, -1.05, 0.2, 0.2), red)]
    face = [
        _part(_ellipse(0, -0.36, 0.6, 0.5), teal),
        _part(_ellipse(0, -0.36, 0.3, 0.3), WHITE),
        _part(_ellipse(0, -0.36, 0.14, 0.14), INK),
    ]
    return [*legs, *antenna, _part(_box(-0.68, 0.0, 0.68, 0.75), sun), *stripes, *face]


def _miso() -> list[Part]:
    """The character of class "cat": white with one ginger side, green eyes and a blue scarf."""
    ginger, blue, green = (232, 130, 42), (38, 84, 210), (46, 170, 80)
    white_head = list(_cat()[0].points)
    ginger_side = [(0.0, -0.6), (0.35, -0.6), (0.85, -1.0), (0.95, 0.1), (0.6, 0.75), (0.0, 0.95)]
    scarf = [
        (-0.8, 0.62),
        (0.8, 0.62),
        (0.7, 1.0),
        (0.35, 1.0),
        (0.35, 1.25),
        (0.05, 1.25),
        (0.05, 1.0),
        (-0.7, 1.0),
    ]
    eyes = [_part(_ellipse(x, 0.0, 0.2, 0.24), green) for x in (-0.42, 0.42)]
    pupils = [_part(_ellipse(x, 0.0, 0.07, 0.18), INK) for x in (-0.42, 0.42)]
    return [_part(white_head, WHITE), _part(ginger_side, ginger), *eyes, *pupils, _part(scarf, blue)]


def _single(points: list[Point]) -> Callable[[], list[Part]]:
    return lambda: [_part(points)]


OBJECTS: dict[str, Callable[[], list[Part]]] = {
    "ball": lambda: [_part(_ellipse(0, 0, 1, 1)), _part(_ellipse(-0.35, -0.38, 0.22, 0.18), 1.5)],
    "box": _single(_box(-0.86, -0.86, 0.86, 0.86)),
    "cone": _single([(0.0, -1.0), (0.95, 0.85), (-0.95, 0.85)]),
    "star": _single(_star(5, 0.42)),
    "heart": _single(_heart()),
    "ring": _ring,
    "cross": _single(_cross()),
    "moon": _single(_moon()),
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
    if tone > 1:
        return tuple(int(c + (255 - c) * (tone - 1)) for c in rgb)
    return tuple(int(c * tone) for c in rgb)


def shapes_of(name: str, rgb: Rgb, centre: Point, radius: float, tilt: float) -> list[Shape]:
    """An object's or character's shapes in pixels, turned by `tilt` radians about its centre."""
    parts = (OBJECTS | CHARACTERS)[name]()
    c, s = math.cos(tilt), math.sin(tilt)

    def place(p: Point) -> Point:
        return (centre[0] + radius * (c * p[0] - s * p[1]), centre[1] + radius * (s * p[0] + c * p[1]))

    return [Shape(tuple(place(p) for p in part.points), _shade(rgb, part.tone), True) for part in parts]


def _hill(w: int, h: int, level: float, swell: float, phase: float) -> tuple[Point, ...]:
    """Ground below a wavy line at `level` (share of the height), its waves `swell` high."""
    line = [(w * i / 24, h * (level + swell * math.sin(phase + 2.2 * math.pi * i / 24))) for i in range(25)]
    return (*line, (float(w), float(h)), (0.0, float(h)))


def _dots(w: int, h: int, rng: random.Random, count: int, below: float, rgb: Rgb) -> list[Shape]:
    side = min(w, h)
    centres = [
        (rng.random() * w, rng.random() * h * below, side * rng.uniform(0.012, 0.022)) for _ in range(count)
    ]
    return [Shape(tuple(_ellipse(x, y, r, r, n=8)), rgb) for x, y, r in centres]


def backdrop(name: str, w: int, h: int, rng: random.Random) -> list[Shape]:
    """The background's shapes in an image of w x h pixels; `rng` moves hills, stars and stripes a little."""
    phase, level = rng.uniform(0, 2 * math.pi), rng.uniform(-0.03, 0.03)
    sky = tuple(_box(0, 0, w, h))
    if name == "meadow":
        return [
            Shape(sky, (168, 214, 245)),
            Shape(_hill(w, h, 0.52 + level, 0.04, phase + 2), (150, 205, 110)),
            Shape(_hill(w, h, 0.66 + level, 0.05, phase), (112, 184, 80)),
        ]
    if name == "beach":
        return [
            Shape(sky, (205, 236, 250)),
            Shape(tuple(_box(0, h * (0.42 + level), w, h)), (50, 140, 196)),
            Shape(_hill(w, h, 0.66 + level, 0.02, phase), (240, 220, 164)),
        ]
    if name == "night":
        return [
            Shape(sky, (22, 26, 66)),
            *_dots(w, h, rng, 16, 0.7, (240, 240, 200)),
            Shape(_hill(w, h, 0.78 + level, 0.05, phase), (38, 46, 58)),
        ]
    if name == "snow":
        return [
            Shape(sky, (176, 188, 206)),
            Shape(_hill(w, h, 0.6 + level, 0.05, phase), (244, 248, 252)),
            *_dots(w, h, rng, 18, 1.0, (255, 255, 255)),
        ]
    if name == "desert":
        return [
            Shape(sky, (252, 206, 150)),
            Shape(_hill(w, h, 0.55 + level, 0.07, phase + 2), (222, 150, 84)),
            Shape(_hill(w, h, 0.7 + level, 0.06, phase), (204, 120, 62)),
        ]
    stripes = [Shape(tuple(_box(w * i / 6, 0, w * (i + 0.5) / 6, h)), (222, 206, 222)) for i in range(6)]
    floor = tuple(_box(0, h * (0.74 + level), w, h))
    return [Shape(sky, (200, 180, 204)), *stripes, Shape(floor, (150, 104, 74))]
