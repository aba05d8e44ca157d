"""The README's commands and the shipped recipes are true."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lora_studio import cli
from lora_studio.families.loading import load_base
from lora_studio.recipe.load import load_recipe
from lora_studio.training.prepare.checks import check_names
from lora_studio.training.prepare.dataset import read_dataset

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
RECIPES = sorted((ROOT / "recipes").glob("pocket_*.toml"))  # the others are for images of one's own


def shown_commands() -> list[str]:
    """Every line of the README's shell blocks."""
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", README, re.DOTALL)
    return [
        line.split("#")[0].strip()
        for block in blocks
        for line in block.splitlines()
        if line.split("#")[0].strip()
    ]


def test_make_demo_and_make_test_are_shown_and_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = [command.split()[1] for command in shown_commands() if command.startswith("make ")]
    assert {"demo", "test"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


@pytest.mark.parametrize("command", [c for c in shown_commands() if "lora-studio " in c])
def test_every_shown_verb_and_option_exists(command: str) -> None:
    words = shlex.split(command[command.index("lora-studio ") :])[1:]
    help_text = CliRunner().invoke(cli.app, [words[0], "--help"], env={"COLUMNS": "200"})
    assert help_text.exit_code == 0, command
    plain = re.sub(r"\x1b\[[0-9;]*m", "", help_text.output)
    assert all(word in plain for word in words[1:] if word.startswith("--")), command


def test_every_file_the_readme_names_exists() -> None:
    named = re.findall(r"\]\(([^)#:]+)\)", README)
    assert named and all((ROOT / path).exists() for path in named)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_load_and_their_data_is_whole(path: Path) -> None:
    recipe = load_recipe(path)
    check_names(recipe)
    stride = load_base(recipe.base.model).stride
    manifest = read_dataset(recipe, stride)
    assert len(manifest.used) >= 8 and not manifest.excluded
    assert all(recipe.data.trigger in record.caption for record in manifest.used)
    assert recipe.name == path.stem
    assert len(path.read_text("utf-8").splitlines()) <= 45
