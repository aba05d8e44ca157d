"""A recipe from a TOML file, with the changes of --set; and in sentences what is wrong with it."""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from lora_studio.errors import RecipeError, RenamedOption
from lora_studio.recipe import Recipe, options
from lora_studio.recipe.renamed import current_name, notice, old_names_in, with_current_names
from lora_studio.recipe.section import WRITE_PATHS
from lora_studio.recipe.toml import plain_values, read_toml
from lora_studio.registry import did_you_mean

_HERE = Path(__file__).resolve().parents[1]  # the package
_INSTALLED = _HERE / "recipes"  # setup.py puts them there; a checkout has them beside the package
PRESET_FOLDER = _INSTALLED if _INSTALLED.is_dir() else _HERE.parent / "recipes"


def load_recipe(
    path: Path | str, *, changes: Sequence[str] = (), set: Mapping[str, object] = MappingProxyType({})
) -> Recipe:
    """The recipe in the TOML file `path`, with `changes` as --set has them, and those of `set` applied.

    `set`: values by dotted key, {"training.steps": 200}, or by section, {"training": {"steps": 200}}.

    Old names of options are accepted with a RenamedOption warning. Raises RecipeError that lists every fault
    at once: a missing file, TOML mistakes, unknown keys (with a suggestion) and values out of range.
    """
    return recipe_in(Path(path), read_toml(Path(path)), changes, _dotted(set), on_old=_warn)


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


_DOTS = 3  # in an option's name, at most
_BRANCHES = {"bool", "int", "float", "str", "tuple"}
_MOST_FAULTS = 40  # that are listed
_OFTEN = ("training", "adapter", "data", "base", "samples")  # the tables of a recipe that are changed most
OnOld = Callable[[str, str], None]  # an option's old name and its current one


def _warn(old: str, new: str) -> None:
    warnings.warn(notice(old, new), RenamedOption, stacklevel=2)


def recipe_in(
    path: Path,
    values: dict[str, Any],
    changes: Sequence[str] = (),
    given: Mapping[str, object] = MappingProxyType({}),
    *,
    on_old: OnOld,
) -> Recipe:
    """The recipe of the values in a file, with changes. Raises as `load_recipe` does."""
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
        lines = [f"{source} has {len(faults)} fault(s):", *(f"  {fault}" for fault in faults[:_MOST_FAULTS])]
        if len(faults) > _MOST_FAULTS:
            lines.append(f"  and {len(faults) - _MOST_FAULTS} more.")
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
    if not equals or not dotted.strip() or dotted.count(".") > _DOTS:
        raise RecipeError(f"--set {change!r} is not key=value; write for example --set training.steps=200.")
    _put(values, dotted.strip(), value_of(text, dotted.strip()), on_old)


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


def value_of(text: str, option: str) -> Any:
    """As TOML, or as a bare string."""
    try:
        values = plain_values(f"value = {text}", f"--set {option}")
    except tomllib.TOMLDecodeError as error:
        if text.startswith('"'):
            raise RecipeError(f"--set {option}={text} is not valid TOML: {error}; {WRITE_PATHS}.") from None
        return text
    if values.keys() != {"value"}:
        raise RecipeError(f"--set {option} is given more than a value; repeat --set for another option.")
    return values["value"]


@cache
def names_elsewhere() -> dict[str, str]:
    """What kohya's sd-scripts, OneTrainer and the diffusers scripts call an option -> our name of it."""
    text = files(__package__).joinpath("elsewhere.toml").read_text("utf-8")
    return {word: option for option, words in tomllib.loads(text).items() for word in words.split()}


def option_named(word: str) -> str:
    """The option that people mean by a bare word, ours or another trainer's: "steps", "network_dim".

    Of several with that last name the one in the first of the tables that are used most; "" if there is none.
    """
    word = word.replace("-", "_").lower()
    named = [option for option, _ in options() if option.rpartition(".")[2] == word]
    first = (option for table in _OFTEN for option in named if option.startswith(f"{table}."))
    return names_elsewhere().get(word) or next(iter([*first, *named]), "")


class RecipeFault(NamedTuple):
    """What is wrong, and where."""

    place: str  # "training.steps", "tokens[0].token", of what concerns a whole table its name, or ""
    sentence: str


def find_faults(values: dict[str, Any], *, folder: Path) -> list[RecipeFault]:
    """What `recipe_from` refuses these values for, each with its place; none if it takes them."""
    values, doubled = with_current_names(values, lambda old, new: None)
    faults = [RecipeFault("", sentence) for sentence in doubled]
    try:
        Recipe.model_validate(values, context={"folder": folder})
    except ValidationError as error:
        faults += _faults(error.errors(), Recipe)
    return faults


def sentences(errors: Sequence[ErrorDetails], recipe: type[BaseModel]) -> list[str]:
    """One for each of pydantic's errors: where, what, and what is allowed. A table's keys are listed once."""
    return [fault.sentence for fault in _faults(errors, recipe)]


def _faults(errors: Sequence[ErrorDetails], recipe: type[BaseModel]) -> list[RecipeFault]:
    told: set[tuple[int | str, ...]] = set()
    errors = _without_branches(errors)
    known = [_sentence(detail, recipe, told) for detail in errors[:_MOST_FAULTS]]
    known += [f"{detail['msg']}." for detail in errors[_MOST_FAULTS:]]  # are only counted
    places = [_dotted_place(detail["loc"]) for detail in errors]
    return [RecipeFault(place, sentence) for place, sentence in zip(places, known, strict=True)]


def _dotted_place(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)[1:]


def _without_branches(errors: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """One for each value: of an option of several types pydantic has an error for each of these."""
    found: dict[tuple[int | str, ...], ErrorDetails] = {}
    for detail in errors:
        *place, last = detail["loc"] or ("",)
        if len(place) > 1 and str(last).partition("[")[0] in _BRANCHES:
            known = found.get((*place, ""), detail)
            found[*place, ""] = {**(detail if last == "float" else known), "loc": tuple(place)}
        else:
            found[*detail["loc"], detail["type"]] = detail
    return list(found.values())


def _sentence(detail: ErrorDetails, recipe: type[BaseModel], told: set[tuple[int | str, ...]]) -> str:
    if detail["type"] == "value_error":  # a check of ours, in our own words
        return str(detail["ctx"]["error"])
    location, value = detail["loc"], _said(detail["input"])
    dotted = _dotted_place(location)
    if detail["type"] == "extra_forbidden":
        return f"unknown key {dotted}{_hint(location, recipe, told)}."
    if detail["type"] == "missing":
        return f"{dotted} is missing; it has no default."
    if detail["type"] == "tuple_type":
        return f"{dotted} is {value}: it must be a list; if it is a table, write [[{dotted}]]."
    if detail["type"] == "string_pattern_mismatch":
        about = _fields_at(location[:-1], recipe)[str(location[-1])].description or ""
        what, _, allowed = about.partition(": ")
        return f"{dotted} is {value}; it must be {allowed} ({what})."
    if detail["type"] == "path_type":
        return f"{dotted} is {value}: it must be a path in quotes."
    message = detail["msg"]
    return f"{dotted} is {value}: {message[:1].lower()}{message[1:]}."


def _said(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # Python prints no integer of thousands of digits
        return "a number of thousands of digits"


def _hint(location: tuple[int | str, ...], recipe: type[BaseModel], told: set[tuple[int | str, ...]]) -> str:
    """What may have been meant, and once for each table what it knows."""
    key, table = str(location[-1]), location[:-1]
    known = list(_fields_at(table, recipe))
    here = names_elsewhere().get(key) or ("" if table else option_named(key))
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
