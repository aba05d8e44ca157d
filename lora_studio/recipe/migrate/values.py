"""Values of other trainers' settings as numbers, yes or no, tables; what asks for nothing."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, get_args

from lora_studio.errors import RecipeError
from lora_studio.recipe import fields
from lora_studio.text import shown

_OFF = ("", "0", "0.0", "none", "null", "false", "no", "off", "[]", "{}")
_YES, _NO = ("true", "1", "1.0", "yes", "on"), ("false", "0", "0.0", "no", "off", "none", "null", "")
_LONGEST = 100  # letters of a value in the table


def is_off(value: object) -> bool:
    """Whether a value asks for nothing."""
    return value in (None, False) or str(value).strip().lower() in _OFF


def tables_in(value: object, name: str) -> list[dict[str, Any]]:
    """A list of tables; nothing is none. Raises RecipeError for anything else."""
    if value in (None, "", {}):
        return []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise RecipeError(f"{shown(name)} is {said_of(value)}; it must be a list of tables.")
    return value


def table_in(value: object, name: str) -> dict[str, Any]:
    """A table; nothing is an empty one. Raises RecipeError for anything else."""
    if value in (None, "", []):
        return {}
    if not isinstance(value, dict):
        raise RecipeError(f"{shown(name)} is {said_of(value)}; it must be a table.")
    return value


def said_of(value: object) -> str:
    return shown(repr(value), limit=80)


def is_one_of(value: object, off: tuple[object, ...]) -> bool:
    """Also as text; True is no 1."""
    return str(value) in map(str, off) or (not isinstance(value, bool) and value in off)


def number_in(value: object, name: str) -> float:
    """Of a number or its text. Raises RecipeError for anything else."""
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(str(value).strip().replace("_", ""))
    except ValueError:
        raise RecipeError(f"{shown(name)} is {shown(repr(value), limit=80)}; it must be a number.") from None
    if not math.isfinite(number):
        raise RecipeError(f"{shown(name)} is {number}; it must be a finite number.")
    return number


def whole_in(value: object, name: str) -> int:
    """Of a whole number or its text, also "4.0". Raises RecipeError for anything else."""
    number = number_in(value, name)
    if number != int(number):
        raise RecipeError(f"{shown(name)} is {number:g}; it must be a whole number.")
    return int(number)


def yes_in(value: object, name: str) -> bool:
    """Of true and false in their spellings. Raises RecipeError for anything else."""
    said = str(value).strip().lower()
    if said in _YES or said in _NO:
        return said in _YES
    raise RecipeError(f"{shown(name)} is {shown(repr(value), limit=80)}; it must be true or false.")


@cache
def _annotations() -> dict[str, tuple[Any, Any]]:
    return {
        option: (section.model_fields[name].annotation, section.model_fields[name].get_default())
        for option, section, name in fields()
        if name in section.model_fields
    }


def default_of(option: str) -> Any:
    """Ours; None of what has none."""
    return _annotations().get(option, (None, None))[1]


def of_kind(option: str, value: Any, name: str) -> Any:
    """A value as the option has it: "0.0001" is a number where one is wanted. Raises RecipeError."""
    annotation = _annotations().get(option, (str, None))[0]
    kinds = set(get_args(annotation)) or {annotation}
    if float in kinds:
        return number_in(value, name)
    if int in kinds:
        return whole_in(value, name)
    if bool in kinds:
        return yes_in(value, name)
    return str(value).strip()


def as_toml(value: Any) -> str:
    """As a recipe has it, for a line of a table: long texts are cut."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, str):
        return f'"{shown(value, limit=_LONGEST)}"'
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {as_toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return str(value)
