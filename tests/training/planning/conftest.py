"""Predictions are compared with a run on a base of the pocket base's size."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import pocket_sized_base, recipe_text

from lora_studio.recipe.load import load_recipe
from lora_studio.training.finish import Finished
from lora_studio.training.session import train

PREVIEW = '[samples]\nprompts = ["a red ball, zwx style", "a blue cat"]\nsteps = 4\nguidance = 2\n'


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pocket_sized_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, images: Path) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(recipe_text(images, str(tiny_base), extra=PREVIEW), "utf-8")
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> Finished:
    result = train(load_recipe(recipe_file), tmp_path_factory.mktemp("run") / "straight")
    assert isinstance(result, Finished)
    return result
