"""How the pocket world's shapes are painted: `plain`, and the styles that the pocket base never sees."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from lora_studio.pocket.shapes import INK, WHITE, Shape

PAPER = (238, 226, 196)
WOOD_INK = (58, 30, 22)
LEAD = (18, 16, 20)
RISO_PAPER = (250, 240, 214)
RISO_INK = (44, 40, 112)


def _luminance(rgb: tuple[int, ...]) -> float:
    return (0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2]) / 255


def _contour(drawing: ImageDraw.ImageDraw, shape: Shape, fill: tuple[int, ...], width: float) -> None:
    drawing.line([*shape.points, shape.points[0]], fill=fill, width=max(1, round(width)), joint="curve")


def plain(shapes: list[Shape], size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Flat colours; objects have a thin contour, light around dark colours and dark around light ones."""
    image = Image.new("RGB", size)
    drawing = ImageDraw.Draw(image)
    for shape in shapes:
        drawing.polygon(shape.points, fill=shape.rgb)
        if shape.outlined:
            _contour(drawing, shape, WHITE if _luminance(shape.rgb) < 0.25 else INK, min(size) / 64)
    return image


def _hatching(size: tuple[int, int], period: float, share: float, rng: random.Random) -> Image.Image:
    """A mask of lines cut by hand: one every `period` pixels, swaying and swelling, 255 on about `share`."""
    x, y = (np.arange(side) for side in size)
    line = (y // period).astype(int)
    number = np.arange(line[-1] + 1)[:, None]
    drawn = np.array([[rng.random() for _ in range(4)] for _ in number])
    sway, sway_start, swell, swell_start = drawn.T[..., None]  # each [lines, 1] in 0..1

    def wave(times: np.ndarray, start: np.ndarray) -> np.ndarray:
        """[lines, width] in -1..1: one to three periods over the image's shorter side."""
        periods: np.ndarray = (1 + 2 * times) * x / min(size) + start
        return np.sin(2 * math.pi * periods)

    middle = number + 0.5 + 0.15 * wave(sway, sway_start)
    width = share * (1 + 0.8 * wave(swell, swell_start))
    inked = np.abs((y / period)[:, None] - middle[line]) < width[line] / 2
    return Image.fromarray(np.where(inked, 255, 0).astype(np.uint8))


def woodcut(shapes: list[Shape], size: tuple[int, int], rng: random.Random) -> Image.Image:
    """A woodblock print on cream paper.

    The ground becomes bold hatching in dark brown, cut by hand, darker tones wider; things are cut out of it
    with a rim of paper around them and printed flat in a darker tone of their own colour.
    """
    image = Image.new("RGB", size, PAPER)
    drawing, side = ImageDraw.Draw(image), min(size)
    for shape in (s for s in shapes if not s.outlined):
        share = 0.25 + 0.25 * (1 - _luminance(shape.rgb))
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).polygon(shape.points, fill=255)
        image.paste(PAPER, mask=mask)
        image.paste(WOOD_INK, mask=ImageChops.multiply(mask, _hatching(size, side / 5, share, rng)))
    for shape in (s for s in shapes if s.outlined):
        _contour(drawing, shape, PAPER, side / 8)
    for shape in (s for s in shapes if s.outlined):
        darker = tuple(round(0.9 * own + 0.1 * ink) for own, ink in zip(shape.rgb, WOOD_INK, strict=True))
        drawing.polygon(shape.points, fill=darker)
    return image


def _cells(size: tuple[int, int], rng: random.Random) -> np.ndarray:
    """[height, width] number of the nearest of a jittered grid of points: the panes of a window."""
    w, h = size
    step = min(size) / 3.4
    columns, rows = math.ceil(w / step) + 1, math.ceil(h / step) + 1
    corners = ((i, j) for j in range(rows) for i in range(columns))
    points = [((i + rng.uniform(-0.1, 0.9)) * step, (j + rng.uniform(-0.1, 0.9)) * step) for i, j in corners]
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    nearest, best = np.zeros((h, w), np.int32), np.full((h, w), np.inf, np.float32)
    for number, (px, py) in enumerate(points):
        distance = (x - px) ** 2 + (y - py) ** 2
        closer = distance < best
        nearest[closer], best[closer] = number, distance[closer]
    return nearest


def _edges(labels: np.ndarray, width: float) -> Image.Image:
    """A mask of lines of about `width` pixels where neighbouring labels differ."""
    edge = np.zeros(labels.shape, np.uint8)
    edge[:, 1:][labels[:, 1:] != labels[:, :-1]] = 255
    edge[1:, :][labels[1:, :] != labels[:-1, :]] = 255
    return Image.fromarray(edge).filter(ImageFilter.MaxFilter(2 * max(1, round(width / 2)) + 1))


def stained_glass(shapes: list[Shape], size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Jewel colours in panes of glass, each lit a little differently, with dark lead between them."""
    flat = Image.new("RGB", size)
    for shape in shapes:
        ImageDraw.Draw(flat).polygon(shape.points, fill=shape.rgb)
    cells = _cells(size, rng)
    light = np.array([rng.uniform(0.6, 1.25) for _ in range(int(cells.max()) + 1)], np.float32)[cells]
    colours = np.asarray(flat, np.float32)
    grey = colours.mean(axis=2, keepdims=True)
    jewel = np.clip((grey + 1.9 * (colours - grey)) * light[..., None] * 0.9, 0, 255)
    image = Image.fromarray(jewel.astype(np.uint8))
    side, objects = min(size), [shape for shape in shapes if shape.outlined]
    ground = Image.new("L", size, 255)  # panes are cut around the objects, whose contours are leaded below
    for shape in objects:
        ImageDraw.Draw(ground).polygon(shape.points, fill=0)
    image.paste(LEAD, mask=ImageChops.multiply(ground, _edges(cells, side / 24)))
    for shape in objects:
        _contour(ImageDraw.Draw(image), shape, LEAD, side / 26)
    return image


def _mixed(rgb: tuple[int, ...], other: tuple[int, ...], share: float) -> tuple[int, ...]:
    return tuple(round(own + share * (its - own)) for own, its in zip(rgb, other, strict=True))


def _screen(size: tuple[int, int], period: float, share: float) -> Image.Image:
    """A mask of round dots `period` pixels apart, 255 on `share` of it."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]].astype(np.float32) / period % 1 - 0.5
    return Image.fromarray(np.where(x**2 + y**2 < share / math.pi, 255, 0).astype(np.uint8))


def riso(shapes: list[Shape], size: tuple[int, int], rng: random.Random) -> Image.Image:
    """A print in layers of ink on warm paper.

    The ground is a tint of its colours under a screen of dots of them, darker tones larger dots; things are
    printed flat, and a bold blue drawing of everything lies a little out of register on it. Every colour
    stays what it was called, and no shape is lost.
    """
    image, side = Image.new("RGB", size, RISO_PAPER), math.sqrt(size[0] * size[1])
    drawing, slip = ImageDraw.Draw(image), (rng.uniform(-1, 1) * side / 90, rng.uniform(-1, 1) * side / 90)

    def draw_line(shape: Shape) -> None:
        moved = Shape(tuple((x + slip[0], y + slip[1]) for x, y in shape.points), shape.rgb)
        is_dark_thing = shape.outlined and _luminance(shape.rgb) < 0.25
        _contour(drawing, moved, RISO_PAPER if is_dark_thing else RISO_INK, side / 34)

    for shape in (s for s in shapes if not s.outlined):
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).polygon(shape.points, fill=255)
        ink, dark = _mixed(shape.rgb, RISO_INK, 0.12), 1 - _luminance(shape.rgb)
        image.paste(_mixed(RISO_PAPER, ink, 0.35 + 0.4 * dark), mask=mask)
        image.paste(ink, mask=ImageChops.multiply(mask, _screen(size, side / 8, 0.2 + 0.35 * dark)))
        top = [(x + slip[0], y + slip[1]) for x, y in shape.points if 0 < y < size[1]]
        if top and top[-1][0] - top[0][0] > size[0] / 2:  # neither a star nor a stripe of a wall
            drawing.line(top, fill=RISO_INK, width=round(side / 34), joint="curve")  # and no frame around all
    for shape in (s for s in shapes if s.outlined):
        drawing.polygon(shape.points, fill=_mixed(shape.rgb, RISO_INK, 0.12))
        draw_line(shape)
    return image


STYLES: dict[str, Callable[[list[Shape], tuple[int, int], random.Random], Image.Image]] = {
    "plain": plain,
    "woodcut": woodcut,
    "stained glass": stained_glass,
    "riso": riso,
}
