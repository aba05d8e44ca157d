"""A recipe from a TOML file, with the changes of --set; and in sentences what is wrong with it."""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from lora_studio.errors import RecipeError, RenamedOption
from lora_studio.recipe import Recipe
from lora_studio.recipe.renamed import current_name, notice, old_names_in, with_current_names
from lora_studio.registry import did_you_mean

_HERE = Path(__file__).resolve().parents[1]  # the package
_INSTALLED = _HERE / "recipes"  # setup.py puts them there; a checkout has them beside the package
PRESET_FOLDER = _INSTALLED if _INSTALLED.is_dir() else _HERE.parent / "recipes"
RUN_RECIPE = "recipe.toml"  # in a run's folder: the recipe as run


def load_recipe(
    path: Path | str, *, changes: Sequence[str] = (), set: Mapping[str, object] = MappingProxyType({})
) -> Recipe:
    """The recipe in the TOML file `path`, with `changes` as --set has them, and those of `set` applied.

    `set`: values by dotted key, {"training.steps": 200}, or by section, {"training": {"steps": 200}}.

    Old names of options are accepted with a RenamedOption warning. Raises RecipeError that lists every fault
    at once: a missing file, TOML mistakes, unknown keys (with a suggestion) and values out of range.
    """
    return _load(Path(path), changes, _dotted(set), on_old=_warn)


def load_run_recipe(folder: Path) -> Recipe:
    """The recipe in a run's folder; that of an earlier version may have other names, and nothing is said."""
    return _load(folder / RUN_RECIPE, (), {}, on_old=lambda old, new: None)


def recipe_from(values: dict[str, Any], *, folder: Path, source: str = "recipe") -> Recipe:
    """A recipe from plain values; relative paths are taken from `folder`. Raises as `load_recipe` does."""
    return _recipe_from(values, folder, source, on_old=_warn)


def changed(recipe: Recipe, set: Mapping[str, object]) -> Recipe:
    """The recipe with other values, checked as `load_recipe` does. Raises RecipeError."""
    values = recipe.model_dump(exclude_unset=True)
    _put_all(values, _dotted(set), on_old=_warn)
    return _recipe_from(values, None, recipe.name, on_old=_warn)


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with so many steps in place of its epochs. Raises RecipeError if all tokens stop early."""
    training = recipe.training.model_copy(update={"steps": steps, "epochs": None})
    return _recipe_from({**dict(recipe), "training": training}, None, recipe.name, on_old=_warn)


OnOld = Callable[[str, str], None]  # an option's old name and its current one


def _warn(old: str, new: str) -> None:
    warnings.warn(notice(old, new), RenamedOption, stacklevel=2)


def _load(path: Path, changes: Sequence[str], given: Mapping[str, object], on_old: OnOld) -> Recipe:
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
    _set_steps_or_epochs(values, [change.partition("=")[0].strip() for change in changes])
    for change in changes:
        _apply_change(values, change, on_old)
    _put_all(values, given, on_old)
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


def _set_steps_or_epochs(values: dict[str, Any], keys: Iterable[str]) -> None:
    """Take out what --set gives the other one of; if it gives both, that is a fault like any other."""
    given = {"training.steps", "training.epochs"}.intersection(keys)
    if len(given) == 1 and isinstance(values.get("training"), dict):
        values["training"].pop("epochs" if "training.steps" in given else "steps", None)


def _apply_change(values: dict[str, Any], change: str, on_old: OnOld) -> None:
    """Put "training.steps=200" into nested values; the value is read as TOML, or as a bare string."""
    dotted, equals, text = change.partition("=")
    if not equals or not dotted.strip():
        raise RecipeError(f"--set {change!r} is not key=value; write for example --set training.steps=200.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    _put(values, dotted.strip(), value, on_old)


def _dotted(given: Mapping[str, object]) -> dict[str, object]:
    """Sections taken apart: {"training": {"steps": 4}} is {"training.steps": 4}."""
    found: dict[str, object] = {}
    for key, value in given.items():
        if isinstance(value, Mapping) and "." not in key:
            found |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            found[key] = value
    return found


def _put_all(values: dict[str, Any], given: Mapping[str, object], on_old: OnOld) -> None:
    _set_steps_or_epochs(values, given)
    for dotted, value in given.items():
        _put(values, dotted, value, on_old)


def _put(values: dict[str, Any], dotted: str, value: object, on_old: OnOld) -> None:
    option = current_name(dotted)
    if option != dotted:
        on_old(dotted, option)
    *sections, last = option.split(".")
    table = values
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {dotted}: {section} is a value, not a table of the recipe.")
    table[last] = value


@cache
def names_elsewhere() -> dict[str, str]:
    """What kohya's sd-scripts, OneTrainer and the diffusers scripts call an option -> our name of it."""
    text = files(__package__).joinpath("elsewhere.toml").read_text("utf-8")
    return {word: option for option, words in tomllib.loads(text).items() for word in words.split()}


def sentences(errors: Sequence[ErrorDetails], recipe: type[BaseModel]) -> list[str]:
    """One for each of pydantic's errors: where, what, and what is allowed. A table's keys are listed once."""
    told: set[tuple[int | str, ...]] = set()
    return [_sentence(detail, recipe, told) for detail in errors]


def _sentence(detail: ErrorDetails, recipe: type[BaseModel], told: set[tuple[int | str, ...]]) -> str:
    if detail["type"] == "value_error":  # a check of ours, in our own words
        return str(detail["ctx"]["error"])
    location, value = detail["loc"], detail["input"]
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)[1:]
    if detail["type"] == "extra_forbidden":
        return f"unknown key {dotted}{_hint(location, recipe, told)}."
    if detail["type"] == "missing":
        return f"{dotted} is missing; it has no default."
    if detail["type"] == "tuple_type":
        return f"{dotted} is {value!r}: it must be a list; if it is a table, write [[{dotted}]]."
    if detail["type"] == "string_pattern_mismatch":
        about = _fields_at(location[:-1], recipe)[str(location[-1])].description or ""
        what, _, allowed = about.partition(": ")
        return f"{dotted} is {value!r}; it must be {allowed} ({what})."
    message = detail["msg"]
    return f"{dotted} is {value!r}: {message[:1].lower()}{message[1:]}."


def _hint(location: tuple[int | str, ...], recipe: type[BaseModel], told: set[tuple[int | str, ...]]) -> str:
    """What may have been meant, and once for each table what it knows."""
    key, table = str(location[-1]), location[:-1]
    known = list(_fields_at(table, recipe))
    here = names_elsewhere().get(key)
    hint = f"; here it is {here}" if here else did_you_mean(key, known, renamed=old_names_in(table))
    listed = "" if table in told else f" (known here: {', '.join(known)})"
    told.add(table)
    return hint + listed


def _fields_at(location: tuple[int | str, ...], recipe: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of the recipe itself (empty location) or of one of its tables."""
    model = recipe
    for part in location:
        if isinstance(part, int):  # which one of several tables of one kind
            continue
        annotation: Any = model.model_fields[part].annotation
        model = annotation if isinstance(annotation, type) else get_args(annotation)[0]
    return model.model_fields
