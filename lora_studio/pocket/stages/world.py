"""What the stages are trained on: scenes, captions in several wordings, and generic textures for the VAE."""

from __future__ import annotations

import hashlib
import random

from PIL import Image, ImageDraw

from lora_studio.pocket.scenes import Scene, draw, sample_scene

NATIVE = 64
BUCKETS: tuple[tuple[int, int], ...] = ((64, 64), (64, 64), (64, 64), (80, 48), (48, 80), (72, 56), (56, 72))
_OPENINGS = ("", "", "", "a picture of ", "an image of ")
_SYLLABLES = (
    *("ba", "do", "ke", "lu", "mi", "no", "po", "ra"),
    *("su", "ti", "vo", "wex", "zor", "qua", "fli", "gro"),
)


def held_out(scene: Scene) -> bool:
    """Whether an object-colour-background triple of the scene is one of the fifth never trained on."""
    triples = [f"{t.name}/{t.colour}/{scene.background}" for t in scene.things]
    return any(hashlib.sha256(triple.encode()).digest()[0] < 51 for triple in triples)


def training_scene(number: int) -> Scene:
    """Scene `number` of the endless training set; none of them is `held_out`."""
    for retry in range(64):
        scene = sample_scene(number * 64 + retry)
        if not held_out(scene):
            return scene
    raise AssertionError("64 draws in a row were held out")


def held_out_scenes(count: int, *, seed: int = 0) -> list[Scene]:
    """`count` single-object scenes whose triple was never trained on."""
    found: list[Scene] = []
    number = 10**12 + seed * 10**6
    while len(found) < count:
        scene = sample_scene(number, pairs=0.0)
        number += 1
        if held_out(scene):
            found.append(scene)
    return found


def wording(scene: Scene, rng: random.Random) -> str:
    """A caption as people write them: with and without an opening, sometimes with a made-up style or name.

    The made-up words go with ordinary images, so that the base learns to ignore words it does not know, as
    big models do; a trigger word then starts without a meaning of its own.
    """
    text = rng.choice(_OPENINGS) + scene.caption()
    if rng.random() < 0.2:
        word = "".join(rng.sample(_SYLLABLES, rng.choice((1, 2)))) + rng.choice(("", "k", "x", "n"))
        text += rng.choice((f", {word} style", f", in the style of {word}", f", {word}"))
    return text


def texture(rng: random.Random, width: int, height: int) -> Image.Image:
    """Random polygons, flat or striped: teaches the VAE fine detail without showing it any of the styles."""
    size = (width * 2, height * 2)

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
            drawing, gap, ink, long = ImageDraw.Draw(layer), rng.uniform(7, 20), colour(), 2 * max(size)
            for i in range(int(long / gap)):
                drawing.line(
                    [(-long, i * gap), (long, i * gap)], fill=ink, width=round(gap * rng.uniform(0.3, 0.6))
                )
            layer = layer.rotate(rng.uniform(0, 180))
        image.paste(layer, mask=mask)
    return image.resize((width, height), Image.Resampling.BOX)


def image_for_vae(number: int) -> Image.Image:
    """Image `number` of the VAE's training set: three scenes to one texture."""
    rng = random.Random(number)
    return texture(rng, NATIVE, NATIVE) if number % 4 == 1 else draw(training_scene(number), NATIVE, NATIVE)
