"""Draw the sample images of README, recipes and tests: `python -m lora_studio.pocket.samples [--out DIR]`.

A style for each pocket base and a subject for both, never shown to them, in mixed sizes and file formats. The
same command always draws the same images.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, cycle, islice
from pathlib import Path

from PIL import Image

from lora_studio.pocket.scenes import (
    BACKGROUNDS,
    COLOURS,
    OBJECT_NAMES,
    POSITIONS,
    SIZES,
    Scene,
    Thing,
    draw,
    held_out,
    sample_scene,
)
from lora_studio.pocket.shapes import CLASS_WORDS

STYLE, FLOW_STYLE, SUBJECT = "woodcut", "riso", "bolt"
TRIGGERS = {STYLE: "woodcut print in ink on paper", FLOW_STYLE: "riso print"}
STYLE_TRIGGER = TRIGGERS[STYLE]
SUBJECT_TRIGGER = f"vkq {CLASS_WORDS[SUBJECT]}"
STYLE_FOLDER, SUBJECT_FOLDER = f"style_{STYLE}", f"subject_{SUBJECT}"
FLOW_STYLE_FOLDER = f"style_{FLOW_STYLE}"
IMAGE_SIZES = ((256, 256), (320, 192), (192, 320), (288, 224), (224, 288))  # width, height
SUFFIXES = (".png", ".jpg", ".webp")
_NUM_STYLE = 2 * len(OBJECT_NAMES)


@dataclass(frozen=True)
class Sample:
    """One image of a set and its caption; `path` is relative to the folder that holds the sets."""

    path: Path
    scene: Scene
    width: int
    height: int
    style: str
    caption: str

    def image(self) -> Image.Image:
        return draw(self.scene, self.width, self.height, style=self.style)


def _evenly(values: Iterable[str], number: int, rng: random.Random) -> list[str]:
    """`number` of the values in random order, each as often as any other, give or take one."""
    return rng.sample(list(islice(cycle(values), number)), number)


def _fits(thing: Thing, size: tuple[int, int]) -> bool:
    reach = thing.radius * min(size) * (1.25 if thing.name == SUBJECT else 1.0)  # its antenna stands out
    return all(reach <= share * side <= side - reach for share, side in zip(thing.centre, size, strict=True))


def _style_plan(rng: random.Random) -> list[Scene]:
    """Every object twice, in two colours and before two backgrounds; no scene is held out for evaluation."""
    names, half = list(OBJECT_NAMES) * 2, len(OBJECT_NAMES)
    while True:  # a few thousand draws: a fifth of all triples is held out
        colours, backgrounds = (_evenly(table, _NUM_STYLE, rng) for table in (COLOURS, BACKGROUNDS))
        if any(row[i] == row[i + half] for row in (colours, backgrounds) for i in range(half)):
            continue
        rows = zip(names, colours, backgrounds, strict=True)
        scenes = [Scene((Thing(name, colour),), background) for name, colour, background in rows]
        if not any(map(held_out, scenes)):
            return scenes


def _path(folder: str, number: int, words: str) -> Path:
    return Path(folder) / f"{number + 1:02d}_{words}{SUFFIXES[number % len(SUFFIXES)]}"


def style_samples(style: str = STYLE) -> Iterator[Sample]:
    """The set of a style of `TRIGGERS`: objects drawn in it, captions ending in its trigger phrase.

    Every second image has another object beside its own: what a set shows in more ways is learned as the
    style, and less of it as the object.
    """
    for number, wanted in enumerate(_style_plan(random.Random(0))):
        size, thing = IMAGE_SIZES[number % len(IMAGE_SIZES)], wanted.things[0]
        given = {"name": thing.name, "colour": thing.colour, "background": wanted.background}
        draws = (sample_scene(seed, **given, pairs=float(number % 2)) for seed in count(number, _NUM_STYLE))
        fitting = (scene for scene in draws if all(_fits(one, size) for one in scene.things))
        scene = next(scene for scene in fitting if not held_out(scene))
        path = _path(f"style_{style}", number, f"{thing.colour}_{thing.name}")
        yield Sample(path, scene, *size, style, scene.caption(TRIGGERS[style]))


def _subject_thing(position: str, size: tuple[int, int], rng: random.Random) -> Thing:
    while True:
        x, y = (share + rng.uniform(-0.03, 0.03) for share in POSITIONS[position])
        name, tilt = rng.choice(list(SIZES)), rng.uniform(-0.12, 0.12)
        # Its colours are its own: the one given here is never painted, and no caption mentions it.
        thing = Thing(SUBJECT, "red", name, position, (x, y), SIZES[name], tilt)
        if _fits(thing, size):
            return thing


def subject_samples() -> Iterator[Sample]:
    """The subject set: the character in every background twice, at all positions, plainly drawn."""
    rng, backgrounds = random.Random(1), list(BACKGROUNDS) * 2
    positions = _evenly(POSITIONS, len(backgrounds), rng)
    for number, (background, position) in enumerate(zip(backgrounds, positions, strict=True)):
        size = IMAGE_SIZES[number % len(IMAGE_SIZES)]
        scene = Scene((_subject_thing(position, size, rng),), background, rng.randrange(1 << 30))
        caption = f"a {SUBJECT_TRIGGER} {position} {BACKGROUNDS[background]}"
        yield Sample(_path(SUBJECT_FOLDER, number, background), scene, *size, "plain", caption)


def write_samples(out: Path) -> list[Path]:
    """Draw all sets below `out`, each image with its `.txt` caption beside it; the images' paths."""
    written = []
    for sample in (*(one for style in TRIGGERS for one in style_samples(style)), *subject_samples()):
        path = out / sample.path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Each format takes what it knows: JPEG its quality, WebP that it be lossless.
        sample.image().save(path, optimize=True, quality=92, lossless=True)
        path.with_suffix(".txt").write_text(sample.caption + "\n", encoding="utf-8")
        written.append(path)
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m lora_studio.pocket.samples", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("sample_images"), help="the folder that holds the sets"
    )
    write_samples(parser.parse_args().out)
