"""A run that the first version began: its folder has other names inside, and goes on to the same bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from earlier import without_digests
from tiny import recipe_text

from lora_studio.metadata.provenance import check_provenance, read_manifest
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.finish import Finished
from lora_studio.training.session import train

FIRST_NAMES = {
    "\n[validation]": "\n[holdout]",
    "\n[samples]": "\n[preview]",
    "\n[data.regularization_images]": "\n[data.class_images]",
    "\nper_image =": "\nper_picture =",
    "\ngradient_accumulation =": "\naccumulation =",
    "\nlr_schedule =": "\nschedule =",
    "\nmax_skipped_steps =": "\nmax_bad_steps =",
    "\nconv =": "\nconvolutions =",
    "\nextra_resolutions =": "\nmore_resolutions =",
    "\nlatent_memory_gb =": "\nlatents_on_device_gb =",
}


def as_first_version(folder: Path) -> None:
    """Give a run's files the names that the first version wrote."""
    without_digests(folder)
    text = (folder / "recipe.toml").read_text("utf-8")
    for new, old in FIRST_NAMES.items():
        assert text.count(new) == 1, new
        text = text.replace(new, old)
    (folder / "recipe.toml").write_text(text, "utf-8")
    manifest = (folder / "manifest.jsonl").read_text("utf-8")
    assert manifest.count('"role": "validation"') == 2
    (folder / "manifest.jsonl").write_text(
        manifest.replace('"role": "validation"', '"role": "holdout"'), "utf-8"
    )
    lines = (folder / "validation.jsonl").read_text("utf-8")
    (folder / "holdout.jsonl").write_text(lines.replace('"images"', '"pictures"'), "utf-8")
    ranking = (folder / "validation.json").read_text("utf-8")
    (folder / "holdout.json").write_text(ranking.replace('"images"', '"pictures"'), "utf-8")
    for name in ("validation.jsonl", "validation.json", "validation.png"):
        (folder / name).unlink()


@pytest.mark.slow
def test_its_run_is_resumed_to_the_same_bytes_and_its_measurements_go_on(
    tmp_path: Path, tiny_base: Path, images: Path
) -> None:
    recipe_file = tmp_path / "tiny.toml"
    extra = "[validation]\ncount = 2\nevery = 1\n"
    recipe_file.write_text(recipe_text(images, str(tiny_base), extra=extra), "utf-8")
    recipe = load_recipe(recipe_file, changes=("training.gradient_accumulation=2",))
    straight = train(recipe, tmp_path / "straight")
    assert isinstance(straight, Finished)

    folder = tmp_path / "old"
    shutil.copytree(straight.folder, folder)
    as_first_version(folder)
    assert {one.role for one in read_manifest(folder)} == {"instance", "validation"}
    assert check_provenance(straight.lora_file, [folder]).proven
    for path in Run(folder).checkpoints():
        if path.name != "step_000002":
            shutil.rmtree(path)
    (folder / "tiny.safetensors").unlink()
    before = {name: (folder / name).read_bytes() for name in ("holdout.jsonl", "holdout.json")}

    resumed = train(recipe, folder, resume=True)
    assert isinstance(resumed, Finished)
    assert resumed.lora_file.read_bytes() == straight.lora_file.read_bytes()
    rows, expected = (Run(one).lines("validation.jsonl") for one in (folder, straight.folder))
    assert rows == expected and [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert json.loads((folder / "validation.json").read_text())["images"]
    assert before == {name: (folder / name).read_bytes() for name in before}  # the user's own stay
