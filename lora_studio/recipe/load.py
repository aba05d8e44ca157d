"""A recipe from a TOML file, with the changes of --set."""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lora_studio.errors import RecipeError, RenamedOption
from lora_studio.recipe import Recipe
from lora_studio.recipe.messages import sentences
from lora_studio.recipe.renamed import current_name, notice, with_current_names

_HERE = Path(__file__).resolve().parents[1]  # the package
_INSTALLED = _HERE / "recipes"  # setup.py puts them there; a checkout has them beside the package
PRESET_FOLDER = _INSTALLED if _INSTALLED.is_dir() else _HERE.parent / "recipes"


RUN_RECIPE = "recipe.toml"  # in a run's folder: the recipe as run


def load_recipe(path: Path, *, changes: tuple[str, ...] = ()) -> Recipe:
    """The recipe in the TOML file `path` with `key=value` changes (dotted keys) applied.

    Old names of options are accepted with a RenamedOption warning. Raises RecipeError that lists every fault
    at once: a missing file, TOML mistakes, unknown keys (with a suggestion) and values out of range.
    """
    return _load(path, changes, on_old=_warn)


def load_run_recipe(folder: Path) -> Recipe:
    """The recipe in a run's folder; that of an earlier version may have other names, and nothing is said."""
    return _load(folder / RUN_RECIPE, (), on_old=lambda old, new: None)


def recipe_from(values: dict[str, Any], *, folder: Path, source: str = "recipe") -> Recipe:
    """A recipe from plain values; relative paths are taken from `folder`.

    Old names of options are accepted with a RenamedOption warning. Raises RecipeError with all faults.
    """
    return _recipe_from(values, folder, source, on_old=_warn)


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with so many steps in place of its epochs. Raises RecipeError if all tokens stop early."""
    training = recipe.training.model_copy(update={"steps": steps, "epochs": None})
    return _recipe_from({**dict(recipe), "training": training}, None, recipe.name, on_old=_warn)


OnOld = Callable[[str, str], None]  # an option's old name and its current one


def _warn(old: str, new: str) -> None:
    warnings.warn(notice(old, new), RenamedOption, stacklevel=2)


def _load(path: Path, changes: tuple[str, ...], on_old: OnOld) -> Recipe:
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
    values, faults = with_current_names(values, on_old)
    _set_steps_or_epochs(values, changes)
    for change in changes:
        _apply_change(values, change, on_old)
    return _recipe_from(values, path.resolve().parent, path.name, on_old, faults)


def _recipe_from(
    values: dict[str, Any], folder: Path | None, source: str, on_old: OnOld, faults: Sequence[str] = ()
) -> Recipe:
    values, doubled = with_current_names(values, on_old)
    faults = [*faults, *doubled]
    try:
        recipe = Recipe.model_validate(values, context={"folder": folder})
    except ValidationError as error:
        faults += sentences(error.errors(), Recipe)
    if faults:
        lines = [f"{source} has {len(faults)} fault(s):", *(f"  {fault}" for fault in faults)]
        raise RecipeError("\n".join(lines))
    return recipe


def _set_steps_or_epochs(values: dict[str, Any], changes: tuple[str, ...]) -> None:
    """Take out what --set gives the other one of; if it gives both, that is a fault like any other."""
    given = {change.partition("=")[0].strip() for change in changes} & {"training.steps", "training.epochs"}
    if len(given) == 1 and isinstance(values.get("training"), dict):
        values["training"].pop("epochs" if "training.steps" in given else "steps", None)


def _apply_change(values: dict[str, Any], change: str, on_old: OnOld) -> None:
    """Put "training.steps=200" into nested values; the value is read as TOML, or as a bare string."""
    dotted, equals, text = change.partition("=")
    option = current_name(dotted.strip())
    if not equals or not option:
        raise RecipeError(f"--set {change!r} is not key=value; write for example --set training.steps=200.")
    if option != dotted.strip():
        on_old(dotted.strip(), option)
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = option.split(".")
    table = values
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {change!r}: {section} is a value, not a table of the recipe.")
    table[last] = value
