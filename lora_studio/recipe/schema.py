"""The JSON Schema of recipes, for editors and other programs: from the models, so it says what they check."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from lora_studio.recipe import Recipe
from lora_studio.version import __version__

SCHEMA_FILE = "lora-studio.schema.json"
DIRECTIVE = f"#:schema ./{SCHEMA_FILE}\n"
"""The first line of a recipe, by which TOML editors (Taplo, Even Better TOML) find the file beside it.

A path beside the recipe works offline, moves with the folder and names no place of this machine.
"""
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
VALUES = {  # of options that name an entry of a table, in rooms above this one
    "AdapterConfig.kind": ("lora", "locon", "dora", "loha", "lokr", "oft", "full", "none"),
    "AdapterConfig.blocks": ("all", "content", "style"),
    "BaseConfig.quantize": ("none", "bnb_int8", "bnb_nf4", "torchao_int8", "torchao_float8"),
    "TrainingConfig.lr_schedule": ("cosine", "linear", "constant"),
}
OPTIMIZER_NAMES = ("adamw", "adamw8bit", "adafactor", "lion", "prodigy", "schedule_free")
SERVICES = ("tensorboard", "wandb", "trackio")
_BOTH = {  # what a validator accepts beside what the type says, option by option
    "DataConfig.flip": {"type": "boolean"},
    "BaseConfig.text_encoder": {"type": "string"},
}


@cache
def recipe_schema() -> dict[str, Any]:
    """Titles, descriptions, defaults, ranges and lists of values; tables refuse keys that they do not know.

    Descriptions are those of docs/reference/recipe.md. What only several options together can break, a
    schema does not say; loading the recipe does.
    """
    schema = Recipe.model_json_schema(mode="validation")
    for name, definition in schema["$defs"].items():
        _mend(definition, name)
    _mend(schema, "Recipe")
    training = schema["$defs"]["TrainingConfig"]
    training["not"] = {"required": ["steps", "epochs"]}
    named = {"enum": list(OPTIMIZER_NAMES)}
    training["properties"]["optimizer"]["anyOf"] = [named, {"type": "string", "pattern": "^[^:]+:[^:]+$"}]
    schema["$defs"]["TrackingConfig"]["properties"]["to"]["items"]["enum"] = list(SERVICES)
    about = f"A recipe of LoRA Studio {__version__}: the whole configuration of a run."
    return {"$schema": _DIALECT} | schema | {"title": "LoRA Studio recipe", "description": about}


def schema_text() -> str:
    """As a file has it."""
    return json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"


def _mend(definition: dict[str, Any], name: str) -> None:
    """TOML has no null, so what may be left out is simply not there; and one title for each table."""
    definition["title"] = name.removesuffix("Config")
    for key, option in definition.get("properties", {}).items():
        kinds = [one for one in option.get("anyOf", []) if one != {"type": "null"}]
        if len(kinds) < len(option.get("anyOf", [])):
            option.pop("anyOf")
            option |= kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
        if option.get("default", "") is None:
            option.pop("default")
        if isinstance(option.get("default"), dict) and "$ref" in option:
            option.pop("default")
        if values := VALUES.get(f"{name}.{key}"):
            option["enum"] = list(values)
        if other := _BOTH.get(f"{name}.{key}"):
            said = {
                one: option.pop(one) for one in list(option) if one not in ("title", "description", "default")
            }
            option["anyOf"] = [said, other]
        option.pop("format", None)
        for ours, theirs in (("ge", "minimum"), ("le", "maximum")):  # pydantic leaves those of int | float
            if ours in option:
                option[theirs] = option.pop(ours)
