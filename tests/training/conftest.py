"""One finished run that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import recipe_text

from lora_studio.recipe.load import load_recipe
from lora_studio.training.finish import Finished
from lora_studio.training.session import train

USER, TOKEN = "rosalinde.huber", "hf_" + "q" * 34
PREVIEW = '[samples]\nprompts = ["a red ball, zwx style", "a blue cat"]\nsteps = 4\nguidance = 2\n'
PREVIEW += "[export]\nsidecars = true\n"


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, images: Path) -> Path:
    """A recipe of four steps on the random miniature, in the folder of a user."""
    path = tmp_path_factory.mktemp("home") / USER / "tiny.toml"
    path.parent.mkdir()
    path.write_text(recipe_text(images, str(tiny_base), extra=PREVIEW), "utf-8")
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> Finished:
    """That recipe, trained without interruption, below that user's folder and with a token at hand."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"HF_TOKEN": TOKEN, "USER": USER, "LOGNAME": USER}.items():
            patch.setenv(name, value)
        result = train(load_recipe(recipe_file), tmp_path_factory.mktemp("run") / USER / "straight")
    assert isinstance(result, Finished)
    return result
