"""Configurations of the other trainers, as their guides have them: every key is told of, the recipes load."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from migrations import EXAMPLES, NAMES, WITH, taken

from lora_studio.recipe import Recipe
from lora_studio.recipe.load import load_recipe

TRAINERS = {"sd": "sd-scripts", "kohya": "kohya_ss", "ai": "ai-toolkit"}
# values of one key, though they are tables: what is inside is no key of the trainer's
WHOLE = {
    "optimizer_params",
    "ema_config",
    "samples",
    "prompts",
    "model_kwargs",
    "network_kwargs",
    "apply_preset",
}
WHOLE |= {"meta"}


def keys_in(value: Any) -> Iterator[str]:
    """Names of keys at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            if key not in WHOLE:
                yield from keys_in(inner)
    elif isinstance(value, list):
        for one in value:
            yield from keys_in(one)


def keys_of(path: Path) -> set[str]:
    """Read independently: by the format's own parser, of a script by what stands behind two dashes."""
    text = path.read_text("utf-8")
    if path.suffix == ".toml":
        return set(keys_in(tomllib.loads(text)))
    if path.suffix == ".json":
        return set(keys_in(json.loads(text)))
    if path.suffix == ".yaml":
        return set(keys_in(yaml.safe_load(text)))
    return set(re.findall(r"--([a-z]\w+)", text))


@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_an_example_is_told_of_and_its_recipe_loads(
    name: str, images: Path, tmp_path: Path
) -> None:
    made = taken(name, images)
    assert made.trainer == TRAINERS.get(re.split("[_-]", name)[0], re.split("[_-]", name)[0])
    told = {re.split(r"[. ]", one.key)[-1] for one in made.draft.fates}
    sections = (
        {"model", "network", "training", "noise", "data"} if name == "sd_scripts_style_sdxl.toml" else set()
    )
    expected = keys_of(EXAMPLES / name) - sections
    if name in WITH:
        expected |= keys_of(EXAMPLES / WITH[name]) - {"old"}
    containers = {
        "general",
        "datasets",
        "subsets",
    }  # of sd-scripts: their keys are told of, with the table's name
    assert expected - told - containers == set()
    file = tmp_path / "made.toml"
    file.write_text(made.text, "utf-8")
    assert load_recipe(file) == made.recipe
    assert isinstance(made.recipe, Recipe)


def test_there_are_enough_examples_of_each_trainer() -> None:
    kinds = [re.split("[_-]", name)[0] for name in NAMES]
    assert len(NAMES) >= 25
    assert {kind: kinds.count(kind) >= 3 for kind in kinds} == dict.fromkeys(kinds, True)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("sd_scripts_lokr.sh", "some_new_option"),
        ("kohya_ss_locon.json", "my_fork_option"),
        ("onetrainer_loha.json", "new_option_of_a_fork"),
        ("ai_toolkit_sd15.yaml", "train.mystery"),
        ("simpletuner_flux.json", "--brand_new_flag"),
    ],
)
def test_an_unknown_key_is_named_and_stands_in_the_recipe(name: str, key: str, images: Path) -> None:
    made = taken(name, images)
    assert [one.key for one in made.draft.fates if one.fate == "unknown"] == [key]
    assert f"#   {key} = " in made.text


def test_no_other_example_has_one(images: Path) -> None:
    unknown = {name for name in NAMES if "Unknown:" in taken(name, images).text}
    assert len(unknown) == 5


def test_secrets_are_named_and_not_copied(images: Path) -> None:
    for name, secret in (
        ("sd_scripts_adafactor.sh", "abcdef123456"),
        ("kohya_ss_standard.json", "0123456789abcdef"),
        ("simpletuner_flux.json", "hf_secretsecret"),
    ):
        made = taken(name, images)
        assert secret not in made.text
        assert any("token" in one.key or "api_key" in one.key for one in made.draft.fates)


def test_a_recipe_says_what_it_was_and_what_became_of_it(images: Path) -> None:
    text = taken("sd_scripts_subject.toml", images).text
    assert text.startswith("# Taken over from sd_scripts_subject.toml, settings of kohya's sd-scripts, by")
    assert "#   network_dim = 16 -> adapter.rank = 16\n" in text
    assert "#   clip_skip = 2: text is encoded as the base's own pipeline does" in text
    assert all(line.startswith("#") for line in text.split("\n\n")[0].splitlines())
