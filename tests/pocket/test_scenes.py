import itertools

import numpy as np
import pytest

from lora_studio.pocket.scenes import (
    BACKGROUNDS,
    CHARACTER_NAMES,
    COLOURS,
    OBJECT_NAMES,
    STYLE_NAMES,
    Scene,
    Thing,
    contact_sheet,
    draw,
    held_out,
    held_out_scenes,
    sample_scene,
    training_scene,
)
from lora_studio.pocket.shapes import CLASS_WORDS


def _pixels(scene: Scene, *, style: str = "plain", size: tuple[int, int] = (96, 96)) -> np.ndarray:
    return np.asarray(draw(scene, *size, style=style), np.float32)


def test_the_world_is_large_enough():
    assert len(OBJECT_NAMES) >= 12
    assert len(COLOURS) >= 10
    assert len(BACKGROUNDS) >= 6
    assert len(STYLE_NAMES) >= 3
    assert len(CHARACTER_NAMES) >= 2
    assert all(CLASS_WORDS[name] in OBJECT_NAMES for name in CHARACTER_NAMES)


@pytest.mark.parametrize("style", STYLE_NAMES)
def test_a_seed_always_gives_the_same_scene_and_image(style):
    assert sample_scene(7) == sample_scene(7)
    assert (_pixels(sample_scene(7), style=style) == _pixels(sample_scene(7), style=style)).all()


def test_other_seeds_give_other_scenes():
    assert len({sample_scene(seed) for seed in range(100)}) == 100


@pytest.mark.parametrize("style", STYLE_NAMES)
@pytest.mark.parametrize("size", [(64, 64), (33, 90), (200, 72)])
def test_any_size_and_aspect_ratio(style, size):
    image = draw(sample_scene(3), *size, style=style)
    assert (image.size, image.mode) == (size, "RGB")


def test_an_image_looks_alike_at_every_size():
    scene = sample_scene(5)
    small = _pixels(scene, size=(48, 48))
    large = np.asarray(
        draw(scene, 192, 192).resize((48, 48), 4), np.float32
    )  # 4: a box filter, plain averaging
    assert np.abs(small - large).mean() < 4


def test_edges_are_anti_aliased():
    ball = Scene((Thing("ball", "red"),), "room", 0)
    values = {tuple(rgb) for rgb in _pixels(ball).reshape(-1, 3)}
    assert len(values) > 30  # the flat shapes alone have fewer than ten colours


def _statistics(style: str) -> np.ndarray:
    """Mean red, green, blue, saturation and edge strength over some scenes."""
    pixels = np.stack([_pixels(sample_scene(seed), style=style) for seed in range(12)])
    saturation = (pixels.max(axis=-1) - pixels.min(axis=-1)).mean()
    edges = np.abs(np.diff(pixels, axis=1)).mean() + np.abs(np.diff(pixels, axis=2)).mean()
    return np.array([*pixels.mean(axis=(0, 1, 2)), saturation, edges])


def test_styles_differ_in_palette_and_texture():
    statistics = {style: _statistics(style) for style in STYLE_NAMES}
    for one, other in itertools.combinations(STYLE_NAMES, 2):
        assert np.abs(statistics[one][:4] - statistics[other][:4]).max() > 15, (one, other)
    plain_edges = statistics["plain"][4]
    for style in set(STYLE_NAMES) - {"plain"}:
        assert statistics[style][4] > 1.5 * plain_edges, style


@pytest.mark.parametrize("character", CHARACTER_NAMES)
def test_a_character_is_not_its_class_in_any_colour(character):
    own = _pixels(Scene((Thing(character, "red"),), "room", 0))
    for colour in COLOURS:
        assert np.abs(own - _pixels(Scene((Thing(CLASS_WORDS[character], colour),), "room", 0))).mean() > 4


def test_captions_name_every_object_colour_and_background():
    for seed in range(300):
        scene = sample_scene(seed)
        caption = scene.caption()
        for thing in scene.things:
            assert f"{thing.colour} {thing.name}" in caption
        assert caption.endswith(BACKGROUNDS[scene.background])


def test_size_and_position_are_true_when_said():
    for seed in range(300):
        for thing in sample_scene(seed).things:
            assert ("size" in thing.says) <= (thing.size in thing.phrase().split())
            assert ("position" in thing.says) <= (thing.position in thing.phrase())


def test_a_trigger_phrase_ends_the_caption():
    assert sample_scene(1).caption("zwx style") == sample_scene(1).caption() + ", zwx style"


def test_no_training_scene_is_held_out():
    assert not any(held_out(training_scene(number)) for number in range(2000))


def test_held_out_scenes_are_held_out_and_about_a_fifth_of_all():
    assert all(held_out(scene) for scene in held_out_scenes(50))
    share = np.mean([held_out(sample_scene(seed, pairs=0.0)) for seed in range(3000)])
    assert 0.15 < share < 0.25


def test_contact_sheet_shows_every_image():
    images = [draw(sample_scene(seed), 32, 32) for seed in range(5)]
    assert contact_sheet(images, 3, gap=4).size == (3 * 36 + 4, 2 * 36 + 4)
