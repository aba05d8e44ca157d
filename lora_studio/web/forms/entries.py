"""What stands in a field of the form, and the value that it means: nothing is lost between them."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from lora_studio.errors import RecipeError
from lora_studio.recipe.toml import plain_values
from lora_studio.web.forms import FormField, Value, form_fields
from lora_studio.web.forms.toml_values import key_text, value_text

Entry = str | list[str] | list[dict[str, "Entry"]] | None  # None: the option is not there
_WORDS = ("text", "path", "choice")  # kinds whose values are the letters themselves


def entry_of(field: FormField, value: Value) -> Entry:
    """What the field shows for a value, also for one that the option cannot have."""
    if value is None:
        return None
    if field.kind == "tables" and isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return [_columns(field, one) for one in value]
    if field.kind == "list" and field.item is not None:
        if isinstance(value, str) and field.item.kind in _WORDS:  # one may stand without its brackets
            return [value]
        if isinstance(value, list):
            item = field.item
            return [str(entry_of(item, one)) for one in value]
    if field.kind == "values" and isinstance(value, dict):
        return "\n".join(f"{key_text(key)} = {value_text(one)}" for key, one in value.items())
    if isinstance(value, str):
        return value
    return value_text(value)


def value_of(field: FormField, entry: Entry) -> Value:
    """The value that the recipe gets; letters that mean none stay letters: the recipe says why not."""
    if entry is None or isinstance(entry, str):
        return None if entry is None else _of_text(field, entry)
    if field.kind == "tables":
        known = {one.key: one for one in field.columns}
        return [
            {key: _plain(known.get(key), one) for key, one in table.items() if one is not None}
            for table in entry
            if isinstance(table, dict)
        ]
    assert field.item is not None, field.option
    return [_of_text(field.item, one) for one in entry if isinstance(one, str)]


def is_default(field: FormField, value: Value) -> bool:
    """Whether the recipe is the same without it."""
    if field.is_required:
        return False
    usual = field.default
    if isinstance(value, bool) != isinstance(usual, bool):
        return False
    return bool(value == usual) or (value is None)


def entries_of(values: Mapping[str, Any]) -> dict[str, Entry]:
    """What every field of the form shows for a recipe's values."""
    return {option: entry_of(field, value_at(values, option)) for option, field in form_fields().items()}


def values_of(entries: Mapping[str, Entry]) -> dict[str, Any]:
    """The values of a recipe with those fields filled in."""
    values: dict[str, Any] = {}
    for option, entry in entries.items():
        if entry is not None:
            put(values, option, value_of(form_fields()[option], entry))
    return values


def value_at(values: Mapping[str, Any], option: str) -> Value:
    """None where it is not there."""
    found: Any = values
    for part in option.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return found


def put(values: dict[str, Any], option: str, value: Value) -> None:
    """Set it in nested tables; None takes it away, and its table when that is empty then."""
    first, _, rest = option.partition(".")
    if not rest:
        if value is None:
            values.pop(first, None)
        else:
            values[first] = value
        return
    inner = values.get(first)
    table = dict(inner) if isinstance(inner, dict) else {}
    put(table, rest, value)
    if table:
        values[first] = table
    else:
        values.pop(first, None)


def _columns(field: FormField, table: Mapping[str, Any]) -> dict[str, Entry]:
    known = {one.key: one for one in field.columns}
    return {
        key: entry_of(known[key], value) if key in known else value_text(value)
        for key, value in table.items()
    }


def _plain(field: FormField | None, entry: Entry) -> Value:
    """Of a column that no table has the value as TOML: the recipe refuses it by name."""
    if field is not None:
        return value_of(field, entry)
    return _as_toml(entry) if isinstance(entry, str) else entry


def _of_text(field: FormField, text: str) -> Value:
    if field.kind in _WORDS:
        return text
    if field.kind == "values":
        return _table(field, text)
    if field.kind == "either" and text in field.choices and text not in ("true", "false"):
        return text
    return _as_toml(text.strip()) if field.kind != "either" else _number_or_text(text)


def _number_or_text(text: str) -> Value:
    """true, a number, or else the letters: "auto", "module:Class"."""
    value = _as_toml(text.strip())
    return value if isinstance(value, bool | int | float) else text


def _table(field: FormField, text: str) -> Value:
    try:
        return plain_values(text, field.option)
    except (tomllib.TOMLDecodeError, RecipeError):
        return text


def _as_toml(text: str) -> Value:
    """A number, true, false or a list as it is written; other letters stay text."""
    try:
        values = plain_values(f"value = {text}", "the form")
    except (tomllib.TOMLDecodeError, RecipeError):
        return _number(text)
    value = values.get("value")
    return text if len(values) != 1 or not _is_plain(value) else value


def _number(text: str) -> Value:
    """ ".5" and "5." are numbers to people, if not to TOML."""
    try:
        value = float(text)
    except ValueError:
        return text
    return value if math.isfinite(value) and not set(text) & set("_ ") else text


def _is_plain(value: object) -> bool:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | dict)
