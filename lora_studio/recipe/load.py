"""A recipe from a TOML file, with the changes of --set."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lora_studio.errors import RecipeError
from lora_studio.recipe import Recipe
from lora_studio.recipe.messages import sentences

_HERE = Path(__file__).resolve().parents[1]  # the package
_INSTALLED = _HERE / "recipes"  # setup.py puts them there; a checkout has them beside the package
PRESET_FOLDER = _INSTALLED if _INSTALLED.is_dir() else _HERE.parent / "recipes"


def load_recipe(path: Path, *, changes: tuple[str, ...] = ()) -> Recipe:
    """The recipe in the TOML file `path` with `key=value` changes (dotted keys) applied.

    Raises RecipeError that lists every fault at once: a missing file, TOML mistakes, unknown keys (with a
    suggestion) and values out of range.
    """
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe at {path}; give the path of a .toml file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path} cannot be read as UTF-8 text ({error}); give the path of a .toml file."
        ) from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        paths = "; write paths with / or in 'single quotes'" if "\\" in str(error) else ""
        raise RecipeError(f"{path} is not valid TOML: {error}{paths}.") from None
    for change in changes:
        _apply_change(values, change)
    return recipe_from(values, folder=path.resolve().parent, source=path.name)


def recipe_from(values: dict[str, Any], *, folder: Path, source: str = "recipe") -> Recipe:
    """A recipe from plain values; relative paths are taken from `folder`.

    Raises RecipeError with all faults.
    """
    try:
        return Recipe.model_validate(values, context={"folder": folder})
    except ValidationError as error:
        faults = sentences(error.errors(), Recipe)
        raise RecipeError(
            "\n".join([f"{source} has {len(faults)} fault(s):", *(f"  {f}" for f in faults)])
        ) from None


def _apply_change(values: dict[str, Any], change: str) -> None:
    """Put "training.steps=200" into nested values; the value is read as TOML, or as a bare string."""
    dotted, equals, text = change.partition("=")
    if not equals or not dotted.strip():
        raise RecipeError(f"--set {change!r} is not key=value; write for example --set training.steps=200.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = dotted.strip().split(".")
    table = values
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {change!r}: {section} is a value, not a table of the recipe.")
    table[last] = value
