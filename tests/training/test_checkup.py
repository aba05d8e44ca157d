"""The doctor before a training: said in the plan, kept in the run folder, and stopping nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from photographs import Planted
from tiny import recipe_text

from lora_studio.errors import DatasetError
from lora_studio.families.loading import load_base
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.events import Progress
from lora_studio.training.prepare import prepare
from lora_studio.training.prepare.dataset import examine_recipe
from lora_studio.training.report import Timing, describe


def test_errors_stand_in_the_plan_and_stop_nothing(tmp_path: Path, tiny_base: Path) -> None:
    planted, held = Planted(tmp_path / "train"), Planted(tmp_path / "held")
    for number in range(3):
        planted.add(f"{number}.png")
    planted.add("strip.png", planted.fresh(400, 80))
    from PIL import Image

    with Image.open(planted.folder / "1.png") as image:
        held.add("alike.png", image.resize((200, 200)))
    text = recipe_text(tmp_path, str(tiny_base)).replace(f'images = "{tmp_path}"', "")
    sources = '[[data.sources]]\nimages = "train"\n[[data.sources]]\nimages = "held"\nrole = "validation"\n'
    (tmp_path / "recipe.toml").write_text(text.replace("[adapter]", f"{sources}[adapter]"))
    events: list[object] = []
    session = prepare(load_recipe(tmp_path / "recipe.toml"), Run(tmp_path / "run"), events.append)
    lines = describe(session, first_step=1, timing=Timing(0.1, 1)).rows
    (error,) = [words for title, words in lines if title == "ERROR"]
    assert error.startswith("leakage: train/1.png: looks like held/alike.png")
    assert ("", "extreme aspect: train/strip.png") in lines
    (counts,) = [words for title, words in lines if title == "doctor"]
    assert counts.startswith("1 error, 2 warnings") and "lora-studio doctor" in counts
    written = json.loads((tmp_path / "run" / "doctor.json").read_text("utf-8"))
    assert written == json.loads(json.dumps(session.report.to_json())) and len(written["findings"]) == 3
    assert Progress("looking at images", 5, 5) in events


def test_a_sound_set_adds_no_line_to_the_plan(tmp_path: Path, tiny_base: Path) -> None:
    planted = Planted(tmp_path / "train")
    for number in range(10):
        planted.add(f"{number}.png", planted.fresh(96, 96))
    (tmp_path / "recipe.toml").write_text(recipe_text(planted.folder, str(tiny_base)))
    session = prepare(load_recipe(tmp_path / "recipe.toml"), Run(tmp_path / "run"), lambda event: None)
    assert session.report.findings == ()
    lines = describe(session, first_step=1, timing=Timing(0.1, 1)).rows
    assert not {"doctor", "ERROR"} & {title for title, _ in lines}


def test_a_recipe_is_examined_where_training_refuses_it(
    images: Path, tmp_path: Path, tiny_base: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(images, folder)
    (folder / "01.txt").unlink()
    (tmp_path / "recipe.toml").write_text(recipe_text(folder, str(tiny_base)))
    recipe = load_recipe(tmp_path / "recipe.toml")
    with pytest.raises(DatasetError, match=r"1 of 5 images have no caption: 01\.jpg"):
        prepare(recipe, Run(tmp_path / "run"), lambda event: None)
    report, manifest = examine_recipe(recipe)
    assert [(one.kind, one.path) for one in report.findings if one.severity == "error"] == [
        ("caption_missing", "01.jpg")
    ]
    assert report.plan["stride"] == 8 and len(manifest.used) == 5


def test_captions_are_cut_where_the_recipes_base_cuts_them(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(images, folder)
    (folder / "01.txt").write_text("zwx style, " + "a red ball on the left " * 8)
    (tmp_path / "recipe.toml").write_text(recipe_text(folder, "pocket"))
    report, _ = examine_recipe(load_recipe(tmp_path / "recipe.toml"))
    (cut,) = [finding for finding in report.findings if finding.kind == "caption_too_long"]
    assert (
        cut.path == "01.jpg" and "of which 32 are read" in cut.detail and cut.detail.endswith('on the left"')
    )


def test_facts_of_a_base_need_none_of_its_weights(tiny_base: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_base, bare)
    for file in bare.rglob("*.safetensors"):
        file.unlink()
    facts, whole = load_base(str(bare), weights=False), load_base(str(tiny_base))
    assert facts.stride == whole.stride
    assert all(parameter.is_meta for part in facts.parts.values() for parameter in part.parameters())
    assert (
        facts.tokenizers["tokenizer"]("a cat").input_ids == whole.tokenizers["tokenizer"]("a cat").input_ids
    )


def test_captions_are_judged_as_the_recipe_shows_them(images: Path, tmp_path: Path) -> None:
    """With its prefix, each line on its own, and in as many windows as it asks for."""
    folder = tmp_path / "copy"
    shutil.copytree(images, folder)
    words = "a red ball on the left " * 3
    for caption in folder.glob("*.txt"):
        caption.write_text(f"{words}\nin the snow {words}")
    (tmp_path / "recipe.toml").write_text(recipe_text(folder, "pocket"))
    settings = ['data.trigger="zwx style"', 'data.caption_prefix="{trigger},"']

    def kinds(*changes: str) -> set[str]:
        report, _ = examine_recipe(load_recipe(tmp_path / "recipe.toml", changes=(*settings, *changes)))
        return {finding.kind for finding in report.findings} & {"caption_too_long", "trigger_missing"}

    assert kinds() == set()  # two captions that fit, and the trigger stands in front of both
    assert kinds('data.caption_lines="join"') == {"caption_too_long"}
    assert kinds('data.caption_lines="join"', "data.max_token_chunks=2") == set()
    assert kinds('data.caption_prefix=""') == {"trigger_missing"}
