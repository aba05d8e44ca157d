from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_studio.pocket.samples import (
    FLOW_STYLE,
    FLOW_STYLE_FOLDER,
    STYLE,
    STYLE_FOLDER,
    SUBJECT_FOLDER,
    SUBJECT_TRIGGER,
    TRIGGERS,
    style_samples,
    subject_samples,
    write_samples,
)
from lora_studio.pocket.scenes import BACKGROUNDS, COLOURS, OBJECT_NAMES, POSITIONS, held_out

COMMITTED = Path(__file__).parents[2] / "sample_images"
FOLDERS = (STYLE_FOLDER, FLOW_STYLE_FOLDER, SUBJECT_FOLDER)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("samples")
    write_samples(out)
    return out


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix != ".txt")


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.int16)


def _format(path: Path) -> str | None:
    with Image.open(path) as image:
        return image.format


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_command_reproduces_names_and_captions(drawn, folder):
    assert sorted(p.name for p in (drawn / folder).iterdir()) == sorted(
        p.name for p in (COMMITTED / folder).iterdir()
    )
    for caption in (drawn / folder).glob("*.txt"):
        assert caption.read_text() == (COMMITTED / folder / caption.name).read_text()


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_command_reproduces_the_images(drawn, folder):
    for path in _images(drawn / folder):
        difference = np.abs(_pixels(path) - _pixels(COMMITTED / folder / path.name))
        # JPEG libraries differ in rounding; the other two formats are lossless.
        assert difference.mean() <= (1.0 if path.suffix == ".jpg" else 0.0), path.name


@pytest.mark.parametrize(
    ("folder", "least", "most"),
    [(STYLE_FOLDER, 24, 30), (FLOW_STYLE_FOLDER, 40, 44), (SUBJECT_FOLDER, 8, 12)],
)
def test_committed_sets_mix_sizes_and_formats(folder, least, most):
    paths = _images(COMMITTED / folder)
    assert least <= len(paths) <= most
    shapes = {_pixels(path).shape for path in paths}
    assert len({height / width for height, width, _ in shapes}) >= 4
    formats = Counter(_format(path) for path in paths)
    assert set(formats) == {"PNG", "JPEG", "WEBP"}
    assert min(formats.values()) >= len(paths) // 3
    assert sum(path.stat().st_size for path in paths) < 500_000


@pytest.mark.parametrize("style", TRIGGERS)
def test_style_set_is_balanced_and_shows_no_held_out_scene(style):
    scenes = [sample.scene for sample in style_samples(style)]
    things = [(scene.things[0], scene.background) for scene in scenes]
    times = len(scenes) // len(OBJECT_NAMES)
    assert Counter(thing.name for thing, _ in things) == dict.fromkeys(OBJECT_NAMES, times)
    assert len({(thing.name, thing.colour) for thing, _ in things}) == len(scenes)
    assert len({(thing.name, background) for thing, background in things}) == len(scenes)
    first = 2 * len(OBJECT_NAMES)
    for some in (things[:first], things[first:]):
        colours, backgrounds = (
            Counter(column) for column in ([t.colour for t, _ in some], [b for _, b in some])
        )
        for counts, table in ((colours, COLOURS), (backgrounds, BACKGROUNDS)):
            assert not some or set(counts) == set(table)
            assert not some or max(counts.values()) - min(counts.values()) <= 1
    assert not any(held_out(scene) for scene in scenes)
    assert [len(scene.things) for scene in scenes[:first]] == [1, 2] * len(OBJECT_NAMES)
    assert all(len(scene.things) == 1 and not scene.things[0].says for scene in scenes[first:])


def test_a_set_of_more_images_begins_with_that_of_fewer():
    fewer, more = (list(style_samples(style)) for style in (STYLE, FLOW_STYLE))
    assert len(more) == len(fewer) + len(OBJECT_NAMES)
    assert [one.scene for one in fewer] == [one.scene for one in more[: len(fewer)]]


@pytest.mark.parametrize(("style", "trigger"), TRIGGERS.items())
def test_style_captions_name_what_is_shown_and_end_in_the_trigger(style, trigger):
    for sample in style_samples(style):
        assert all(f"{thing.colour} {thing.name}" in sample.caption for thing in sample.scene.things)
        assert BACKGROUNDS[sample.scene.background] in sample.caption
        assert sample.caption.endswith(f", {trigger}")


def test_subject_is_seen_in_every_background_and_position_without_a_colour_word():
    samples = list(subject_samples())
    assert Counter(sample.scene.background for sample in samples) == dict.fromkeys(BACKGROUNDS, 2)
    assert {sample.scene.things[0].position for sample in samples} == set(POSITIONS)
    assert len({sample.scene.things[0].size for sample in samples}) == 3
    for sample in samples:
        assert sample.caption.startswith(f"a {SUBJECT_TRIGGER} ")
        assert not set(sample.caption.split()) & set(COLOURS)
