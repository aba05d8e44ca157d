"""The pocket world: small images from a grammar, with captions that say what is in them.

A scene is one or two coloured objects before one of six backgrounds. It is laid out as flat shapes, and a
*style* paints the shapes: `plain` is what the pocket base was trained on; the other styles and the two
characters are never shown to it, so that there is something to learn. Everything is a pure function of the
scene, whose numbers come from a seed; images are anti-aliased and look alike at every size.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from lora_studio.pocket.shapes import CHARACTERS, OBJECTS, Shape, backdrop, shapes_of
from lora_studio.pocket.styles import STYLES

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 44),
    "orange": (245, 138, 28),
    "yellow": (250, 218, 50),
    "green": (34, 139, 58),
    "cyan": (60, 208, 214),
    "blue": (36, 74, 205),
    "purple": (136, 58, 176),
    "pink": (248, 142, 190),
    "brown": (124, 76, 40),
    "black": (30, 30, 34),
}
BACKGROUNDS: dict[str, str] = {
    "meadow": "in a meadow",
    "beach": "on a beach",
    "night": "at night",
    "snow": "in the snow",
    "desert": "in a desert",
    "room": "in a room",
}
SIZES: dict[str, float] = {"small": 0.18, "medium": 0.25, "large": 0.33}  # radius / the shorter side
POSITIONS: dict[str, tuple[float, float]] = {
    "on the left": (0.28, 0.55),
    "on the right": (0.72, 0.55),
    "in the middle": (0.5, 0.52),
    "at the top": (0.5, 0.32),
    "at the bottom": (0.5, 0.7),
}
OBJECT_NAMES = tuple(OBJECTS)
CHARACTER_NAMES = tuple(CHARACTERS)
STYLE_NAMES = tuple(STYLES)
_SUPERSAMPLING = 3


@dataclass(frozen=True)
class Thing:
    """One object or character; its centre is in shares of the image's sides, its radius of the shorter."""

    name: str
    colour: str
    size: str = "medium"
    position: str = "in the middle"
    centre: tuple[float, float] = (0.5, 0.52)
    radius: float = 0.24
    tilt: float = 0.0
    says: frozenset[str] = frozenset()  # which of "size", "position" the caption mentions

    def phrase(self) -> str:
        """What a caption calls it, e.g. "a small red ball on the left"."""
        size, position = (getattr(self, word) if word in self.says else "" for word in ("size", "position"))
        phrase = " ".join(filter(None, (size, self.colour, self.name, position)))
        return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


@dataclass(frozen=True)
class Scene:
    """Things before a background; `seed` settles the background's details and the brush of a style."""

    things: tuple[Thing, ...]
    background: str
    seed: int = 0
    jitter: tuple[int, ...] = (0, 0, 0)

    def caption(self, trigger: str = "") -> str:
        """The scene in words; `trigger`, if given, is appended as a style's trigger phrase."""
        text = " and ".join(thing.phrase() for thing in self.things) + " " + BACKGROUNDS[self.background]
        return f"{text}, {trigger}" if trigger else text


def _thing(rng: random.Random, name: str, colour: str, *, place: tuple[float, float] | None = None) -> Thing:
    size = rng.choice(list(SIZES))
    position = rng.choice(list(POSITIONS))
    x, y = POSITIONS[position] if place is None else place
    says = {word for word in ("size", "position") if rng.random() < 0.6}
    if place is not None:
        size, says = "medium", says - {"position"}
    if size == "medium":
        says.discard("size")
    radius = SIZES[size] * rng.uniform(0.94, 1.06) * (0.82 if place else 1.0)
    centre = (x + rng.uniform(-0.03, 0.03), y + rng.uniform(-0.03, 0.03))
    return Thing(name, colour, size, position, centre, radius, rng.uniform(-0.12, 0.12), frozenset(says))


def sample_scene(
    seed: int, *, name: str = "", colour: str = "", background: str = "", pairs: float = 0.25
) -> Scene:
    """The scene number `seed`; what is given is kept, the rest drawn. `pairs`: the share with two objects."""
    rng = random.Random(seed)
    two = rng.random() < pairs
    places: list[tuple[float, float] | None] = [(0.27, 0.55), (0.73, 0.55)] if two else [None]
    names = [name or rng.choice(OBJECT_NAMES), *rng.sample(OBJECT_NAMES, 1)]
    colours = [colour or rng.choice(list(COLOURS)), *rng.sample(list(COLOURS), 1)]
    things = [_thing(rng, n, c, place=p) for n, c, p in zip(names, colours, places, strict=False)]
    jitter = tuple(rng.randint(-9, 9) for _ in range(3))
    return Scene(tuple(things), background or rng.choice(list(BACKGROUNDS)), rng.randrange(1 << 30), jitter)


def layout(scene: Scene, width: int, height: int) -> list[Shape]:
    """The scene as flat shapes in pixels, back to front."""
    shapes = backdrop(scene.background, width, height, random.Random(scene.seed))
    for thing in scene.things:
        rgb = tuple(max(0, min(255, c + j)) for c, j in zip(COLOURS[thing.colour], scene.jitter, strict=True))
        centre = (thing.centre[0] * width, thing.centre[1] * height)
        shapes += shapes_of(thing.name, rgb, centre, thing.radius * min(width, height), thing.tilt)
    return shapes


def draw(scene: Scene, width: int, height: int, *, style: str = "plain") -> Image.Image:
    """The scene as an RGB image of width x height pixels in a style of `STYLE_NAMES`."""
    big = (width * _SUPERSAMPLING, height * _SUPERSAMPLING)
    painted = STYLES[style](layout(scene, *big), big, random.Random(scene.seed + 1))
    return painted.resize((width, height), Image.Resampling.BOX)


def contact_sheet(images: list[Image.Image], columns: int, *, gap: int = 4) -> Image.Image:
    """The images in rows of `columns`, each in a cell of the largest one's size, on white."""
    cell_w, cell_h = (max(p.size[i] for p in images) + gap for i in (0, 1))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell_w + gap, rows * cell_h + gap), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (gap + index % columns * cell_w, gap + index // columns * cell_h))
    return sheet


NATIVE = 64
BUCKETS: tuple[tuple[int, int], ...] = ((64, 64), (64, 64), (64, 64), (80, 48), (48, 80), (72, 56), (56, 72))
_OPENINGS = ("", "", "", "a picture of ", "an image of ")
_SYLLABLES = [
    *("ba", "do", "ke", "lu", "mi", "no", "po", "ra", "su", "ti", "vo", "wex", "zor", "qua", "fli", "gro")
]


def held_out(scene: Scene) -> bool:
    """Whether an object-colour-background triple of the scene is one of the fifth never trained on."""
    triples = [f"{t.name}/{t.colour}/{scene.background}" for t in scene.things]
    return any(hashlib.sha256(triple.encode()).digest()[0] < 51 for triple in triples)


def training_scene(number: int) -> Scene:
    """Scene `number` of the endless training set; none of them is `held_out`."""
    draws = (sample_scene(number * 64 + retry) for retry in range(64))
    return next(scene for scene in draws if not held_out(scene))


def held_out_scenes(count: int, *, seed: int = 0) -> list[Scene]:
    """`count` single-object scenes whose triple was never trained on."""
    draws = (sample_scene(number, pairs=0.0) for number in itertools.count(10**12 + seed * 10**6))
    return list(itertools.islice(filter(held_out, draws), count))


def wording(scene: Scene, rng: random.Random) -> str:
    """A caption as people write them: with and without an opening, sometimes with a made-up style or name.

    The made-up words go with ordinary images, so that the base learns to ignore words it does not know, as
    big models do; a trigger word then starts without a meaning of its own.
    """
    text = rng.choice(_OPENINGS) + scene.caption()
    if rng.random() < 0.2:
        word = made_up(rng)
        text += rng.choice((f", {word} style", f", in the style of {word}", f", {word}"))
    return text


def made_up(rng: random.Random) -> str:
    """A word that means nothing."""
    return "".join(rng.sample(_SYLLABLES, rng.choice((1, 2)))) + rng.choice(("", "k", "x", "n"))


def texture(rng: random.Random, width: int, height: int) -> Image.Image:
    """Random polygons, flat or striped: teaches the VAE fine detail without showing it any of the styles."""
    size = (width * 2, height * 2)
    scale = min(size) / (2 * NATIVE)  # stripes are as wide in shares of an image of every size

    def colour() -> tuple[int, int, int]:
        return (rng.randrange(256), rng.randrange(256), rng.randrange(256))

    image = Image.new("RGB", size, colour())
    for _ in range(rng.randint(2, 6)):
        x, y, r = rng.random() * size[0], rng.random() * size[1], rng.uniform(0.15, 0.7) * min(size)
        corners = [(x + rng.uniform(-r, r), y + rng.uniform(-r, r)) for _ in range(rng.randint(3, 7))]
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).polygon(corners, fill=255)
        layer = Image.new("RGB", size, colour())
        if rng.random() < 0.6:
            drawing, gap, ink, long = (
                ImageDraw.Draw(layer),
                scale * rng.uniform(7, 20),
                colour(),
                2 * max(size),
            )
            for i in range(int(long / gap)):
                width_of_line = round(gap * rng.uniform(0.3, 0.6))
                drawing.line([(-long, i * gap), (long, i * gap)], fill=ink, width=width_of_line)
            layer = layer.rotate(rng.uniform(0, 180))
        image.paste(layer, mask=mask)
    return image.resize((width, height), Image.Resampling.BOX)


def image_for_vae(number: int, side: int = NATIVE) -> Image.Image:
    """Image `number` of the VAE's training set, `side` pixels square: three scenes to one texture."""
    rng = random.Random(number)
    return texture(rng, side, side) if number % 4 == 1 else draw(training_scene(number), side, side)
