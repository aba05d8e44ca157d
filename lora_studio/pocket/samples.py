"""Draw the sample images of README, recipes and tests: `python -m lora_studio.pocket.samples [--out DIR]`.

A style for each pocket base and a subject for both, never shown to them, in mixed sizes and file formats. The
same command always draws the same images.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, cycle, islice, product
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
_TIMES = {STYLE: 2, FLOW_STYLE: 3}  # that each object is shown


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


def _style_plan(times: int) -> list[Scene]:
    """Every object so often, in other colours and before other backgrounds; none is held out for evaluation.

    A larger set begins with the smaller one.
    """
    rng = random.Random(0)
    plan = _two_of_each(rng)
    for _ in range(times - 2):
        plan += _one_more_of_each(plan, rng)
    return plan


def _two_of_each(rng: random.Random) -> list[Scene]:
    names, half = list(OBJECT_NAMES) * 2, len(OBJECT_NAMES)
    while True:  # a few thousand draws: a fifth of all triples is held out
        colours, backgrounds = (_evenly(table, len(names), rng) for table in (COLOURS, BACKGROUNDS))
        if any(row[i] == row[i + half] for row in (colours, backgrounds) for i in range(half)):
            continue
        rows = zip(names, colours, backgrounds, strict=True)
        scenes = [_scene(*row) for row in rows]
        if not any(map(held_out, scenes)):
            return scenes


def _one_more_of_each(known: list[Scene], rng: random.Random) -> list[Scene]:
    shown = {(one.things[0].name, word) for one in known for word in (one.things[0].colour, one.background)}
    while True:  # until the last objects find some that are left for them
        colours, backgrounds = (_evenly(table, len(OBJECT_NAMES), rng) for table in (COLOURS, BACKGROUNDS))
        scenes = list[Scene]()
        for name in OBJECT_NAMES:
            left = [
                pair for pair in product(colours, backgrounds) if not shown & {(name, word) for word in pair}
            ]
            fitting = [one for one in (_scene(name, *pair) for pair in left) if not held_out(one)]
            if not fitting:
                break
            scenes.append(rng.choice(fitting))
            colours.remove(scenes[-1].things[0].colour)
            backgrounds.remove(scenes[-1].background)
        else:
            return scenes


def _scene(name: str, colour: str, background: str) -> Scene:
    return Scene((Thing(name, colour),), background)


def _path(folder: str, number: int, words: str) -> Path:
    return Path(folder) / f"{number + 1:02d}_{words}{SUFFIXES[number % len(SUFFIXES)]}"


def style_samples(style: str = STYLE) -> Iterator[Sample]:
    """The set of a style of `TRIGGERS`: objects drawn in it, captions ending in its trigger phrase.

    Of the first two of each object every second has another beside it: what a set shows in more ways is
    learned as the style, and less of it as the object. A third stands alone, in as few words as a prompt.
    """
    first = 2 * len(OBJECT_NAMES)
    for number, wanted in enumerate(_style_plan(_TIMES[style])):
        size, thing = IMAGE_SIZES[number % len(IMAGE_SIZES)], wanted.things[0]
        given = {"name": thing.name, "colour": thing.colour, "background": wanted.background}
        plainly = number >= first  # one thing, and no word of its size and place
        pairs = float(number % 2 and not plainly)
        draws = (sample_scene(seed, **given, pairs=pairs) for seed in count(number, first))
        fitting = (scene for scene in draws if all(_fits(one, size) for one in scene.things))
        scene = next(one for one in fitting if not held_out(one) and not (plainly and one.things[0].says))
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
