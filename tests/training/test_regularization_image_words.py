"""Regularization images are captioned as the run's own images: lines, words in braces, prefix and trigger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from noise import grey_noise
from tiny import recipe_text

from lora_studio.errors import DatasetError
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.prepare import Session, prepare
from lora_studio.training.prepare.regularization_images import draw_ahead
from lora_studio.training.report import Timing, describe

DRAWN = (
    "data.regularization_images.count=20",
    "data.regularization_images.steps=1",
    "data.regularization_images.guidance=1",
)
VARIED = "a {red|blue} zwx style robot on a beach\na zwx style robot, side view\n"
PLAIN = {"a red robot on a beach", "a blue robot on a beach", "a robot, side view"}

Start = Callable[..., Session]


def paint(folder: Path, captions: str, numbers: range = range(2)) -> None:
    """Images of noise that all have these captions."""
    folder.mkdir()
    for number in numbers:
        grey_noise((64, 64), number).convert("RGB").save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(captions, "utf-8")


@pytest.fixture
def recipe_of(tmp_path: Path, tiny_base: Path) -> Callable[[str], Path]:
    """A recipe whose two images have these captions."""

    def make(captions: str) -> Path:
        paint(tmp_path / "images", captions)
        path = tmp_path / "recipe.toml"
        path.write_text(recipe_text(tmp_path / "images", str(tiny_base)), "utf-8")
        return path

    return make


def prompts_of(path: Path, *changes: str) -> list[str]:
    """What the regularization images that were drawn show."""
    drawing = draw_ahead(load_recipe(path, changes=(*DRAWN, *changes)), ignore_events)
    return [record.caption for record in drawing.records]


def test_of_lines_and_words_in_braces_one_is_drawn_for_each_image(
    recipe_of: Callable[[str], Path],
) -> None:
    path = recipe_of(VARIED)
    assert set(prompts_of(path, "data.wildcards=true")) == PLAIN
    assert set(prompts_of(path, "data.caption_lines=join")) == {
        "a {red|blue} robot on a beach a robot, side view"
    }


def test_a_prompt_of_ones_own_has_words_in_braces_too(recipe_of: Callable[[str], Path]) -> None:
    prompt = 'data.regularization_images.prompt="a {red|blue} robot"'
    assert set(prompts_of(recipe_of(VARIED), "data.wildcards=true", prompt)) == {
        "a red robot",
        "a blue robot",
    }


def test_a_trigger_that_stands_in_the_prefix_is_left_out(recipe_of: Callable[[str], Path]) -> None:
    path = recipe_of("a robot on a beach")
    words = ('data.caption_prefix="{trigger}, "', 'data.caption_suffix=", in colour"')
    assert set(prompts_of(path, *words)) == {"a robot on a beach, in colour"}


def test_tags_of_a_prompt_are_neither_moved_nor_left_out(recipe_of: Callable[[str], Path]) -> None:
    path = recipe_of("zwx style, a robot, a beach, night")
    assert set(prompts_of(path, "data.shuffle_tags=true", "data.tag_dropout=0.5")) == {
        "a robot, a beach, night"
    }


def test_another_seed_of_training_draws_nothing_anew(recipe_of: Callable[[str], Path]) -> None:
    path, changes = recipe_of(VARIED), ("data.wildcards=true", "data.regularization_images.seed=3")
    prompts = prompts_of(path, *changes)
    assert prompts_of(path, *changes, "training.seed=2") == prompts
    assert prompts_of(path, *changes, "data.regularization_images.seed=4") != prompts


def test_a_trigger_that_other_words_hold_is_no_trigger_there(recipe_of: Callable[[str], Path]) -> None:
    path = recipe_of("art, a party")
    assert set(prompts_of(path, "data.trigger=art")) == {"a party"}
    with pytest.raises(DatasetError, match="hold the trigger: drawn from 'the art of a party'"):
        prompts_of(path, "data.trigger=art", 'data.regularization_images.prompt="the art of a party"')


@pytest.fixture
def start(recipe_of: Callable[[str], Path], tmp_path: Path) -> Start:
    """The run with a folder of regularization images, ready for its first step."""

    def make(captions: str, *changes: str) -> Session:
        paint(tmp_path / "class", captions, range(10, 30))
        path = recipe_of(VARIED)
        changes = ("data.regularization_images.images=class", "data.caption_dropout=0", *changes)
        return prepare(load_recipe(path, changes=changes), Run(tmp_path / "run"), ignore_events)

    return make


def class_captions(session: Session, steps: int = 20) -> set[str]:
    """Those that the first steps show beside the images' own."""
    batches = [batch for step in range(1, steps + 1) for batch in session.loop.feed.of_step(step)]
    return {caption for batch in batches for caption in batch.captions[len(batch.captions) // 2 :]}


def test_a_regularization_image_in_a_folder_is_shown_with_one_of_its_captions(start: Start) -> None:
    words = ("data.wildcards=true", 'data.caption_prefix="{trigger}, "')
    session = start("a {green|black} robot\na robot, from above", *words)
    shown = class_captions(session)
    assert shown == {"a green robot", "a black robot", "a robot, from above"}
    plan = describe(session, first_step=1, timing=Timing(0.1, 1)).rows
    (line,) = (text for _, text in plan if "from folders" in text)
    assert line.startswith("20 from folders") and any(f'"{caption}"' in line for caption in shown)
    written = (session.run.folder / "manifest.jsonl").read_text("utf-8")
    assert "a {green|black} robot" in written  # what was read


def test_no_caption_of_a_regularization_image_may_hold_the_trigger_even_if_another_is_shown(
    start: Start,
) -> None:
    with pytest.raises(DatasetError, match=r"hold the trigger: class/10\.png"):
        start("a robot\na zwx style robot\na robot at night\na robot by day")
