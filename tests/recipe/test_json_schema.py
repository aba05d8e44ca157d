"""The JSON Schema of recipes, by the package jsonschema: what ships is valid, and 30 mistakes are not."""

from __future__ import annotations

import copy
import html
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from write_reference import recipe_page

from lora_studio.adapters import ADAPTERS
from lora_studio.quantization import QUANTIZERS
from lora_studio.recipe.adapter import NO_ADAPTER
from lora_studio.recipe.load import PRESET_FOLDER
from lora_studio.recipe.schema import DIRECTIVE, OPTIMIZER_NAMES, SCHEMA_FILE, SERVICES, VALUES, recipe_schema
from lora_studio.training.optimizers import OPTIMIZERS, SCHEDULES
from lora_studio.training.tracking import OFFERED

VALIDATOR = Draft202012Validator(recipe_schema())
SHIPPED = sorted(PRESET_FOLDER.glob("*.toml"))
RECIPE: dict[str, Any] = {"name": "a", "base": {"model": "pocket"}, "data": {"images": "i"}}


def with_value(place: str, value: object) -> dict[str, Any]:
    """The recipe with one value more, or without one for None."""
    changed = copy.deepcopy(RECIPE)
    *tables, last = place.split(".")
    table = changed
    for name in tables:
        table = table.setdefault(name, {})
    if value is None:
        table.pop(last)
    else:
        table[last] = value
    return changed


def test_it_is_a_schema_and_a_small_recipe_is_valid() -> None:
    Draft202012Validator.check_schema(recipe_schema())
    assert VALIDATOR.is_valid(RECIPE)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    errors = list(VALIDATOR.iter_errors(tomllib.loads(path.read_text("utf-8"))))
    assert not errors, errors[:1]


WRONG = [
    ("name", "has blanks", "name"),
    ("name", "", "name"),
    ("name", 3, "name"),
    ("name", None, ""),
    ("base.model", None, "base"),
    ("base.model", 4, "base.model"),
    ("base.dtype", "fp16", "base.dtype"),
    ("base.quantize", "int8", "base.quantize"),
    ("base.prediction_type", "v", "base.prediction_type"),
    ("data.imags", "x", "data"),
    ("data.resolution", 8, "data.resolution"),
    ("data.resolution", "512", "data.resolution"),
    ("data.caption_dropout", 1.0, "data.caption_dropout"),
    ("data.flip", 2, "data.flip"),
    ("data.crop", "center", "data.crop"),
    ("data.background", "red", "data.background"),
    ("data.sources", [{"images": "x", "role": "class"}], "data.sources.0.role"),
    ("data.sources", [{"role": "prior"}], "data.sources.0"),
    ("data.extra_resolutions", [512, 5000], "data.extra_resolutions.1"),
    ("adapter.rank", 0, "adapter.rank"),
    ("adapter.kind", "lycoris", "adapter.kind"),
    ("adapter.layers", [{"rank": 4}], "adapter.layers.0"),
    ("adapter.rank_dropout", 0.9, "adapter.rank_dropout"),
    ("objective.timestep_range", [0.0, 1.5], "objective.timestep_range.1"),
    ("objective.timestep_range", [0.5], "objective.timestep_range"),
    ("objective.loss", "l1", "objective.loss"),
    ("training.steps", 0, "training.steps"),
    ("training.learning_rate", 2.0, "training.learning_rate"),
    ("training.lr_schedule", "cosine_with_restarts", "training.lr_schedule"),
    ("training.optimizer", "adam", "training.optimizer"),
    ("training.epochs", -1, "training.epochs"),
    ("samples.prompts", "a fox", "samples.prompts"),
    ("export.dtype", "fp16", "export.dtype"),
    ("tracking.to", ["comet"], "tracking.to.0"),
    ("traning.steps", 3, ""),
]


@pytest.mark.parametrize(("place", "value", "where"), WRONG, ids=[f"{one[0]}={one[1]}" for one in WRONG])
def test_a_mistake_is_found_where_it_is(place: str, value: object, where: str) -> None:
    errors = list(VALIDATOR.iter_errors(with_value(place, value)))
    assert {".".join(map(str, one.absolute_path)) for one in errors} == {where}


def test_there_are_thirty_mistakes_and_steps_go_without_epochs() -> None:
    assert len(WRONG) >= 30
    both = {**RECIPE, "training": {"steps": 3, "epochs": 1}}
    assert [list(one.absolute_path) for one in VALIDATOR.iter_errors(both)] == [["training"]]


def test_descriptions_and_defaults_are_those_of_the_reference_page() -> None:
    """Of each row of the page its text, in the schema's words, and its default."""
    page, definitions = html.unescape(recipe_page()), recipe_schema()["$defs"]
    described = 0
    for definition in definitions.values():
        for key, option in definition["properties"].items():
            if "$ref" in option:  # a table of its own
                continue
            about = re.sub(r"[\\`]", "", option["description"])
            rows = [
                re.sub(r"[\\`]", "", line) for line in page.splitlines() if line.startswith(f"| `{key}` |")
            ]
            assert any(about in row for row in rows) or option.get("items", {}).get("$ref"), (key, about)
            described += 1
    assert described > 120


def test_names_of_tables_are_those_that_are_there() -> None:
    assert set(VALUES["AdapterConfig.kind"]) == {*ADAPTERS.names(), NO_ADAPTER}
    assert list(VALUES["BaseConfig.quantize"]) == QUANTIZERS.names()
    assert list(VALUES["TrainingConfig.lr_schedule"]) == SCHEDULES.names()
    assert (list(OPTIMIZER_NAMES), SERVICES) == (OPTIMIZERS.names(), OFFERED)


def test_the_verb_prints_it_without_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from lora_studio.cli import app\n"
        "try: app(['schema'])\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert json.loads(done.stdout) == recipe_schema(), done.stderr


def test_no_recipe_that_ships_names_a_place_for_it() -> None:
    assert not [path for path in SHIPPED if "#:schema" in path.read_text("utf-8")]
    assert f"#:schema ./{SCHEMA_FILE}\n" == DIRECTIVE
