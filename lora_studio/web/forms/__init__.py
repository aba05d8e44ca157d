"""The form of a recipe, from its JSON schema: every option with its kind, help, default and range."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from lora_studio.recipe.load import names_elsewhere
from lora_studio.recipe.schema import recipe_schema
from lora_studio.text import in_words

Kind = Literal["yes_no", "integer", "number", "either", "choice", "text", "path", "list", "tables", "values"]
Value = Any  # as TOML has it

_PATHS = {  # options that name a file or a folder, which JSON Schema does not tell from other texts
    *("base.model", "base.vae", "base.text_encoder", "base.training_adapter", "base.tokenizer"),
    *("base.loras[].file", "data.images", "data.masks", "data.exclude", "data.sources[].images"),
    *("data.sources[].masks", "data.regularization_images.images", "adapter.init_from", "evaluate.images"),
}
_SIMPLE = {  # what most people change; the rest is found by search, or under "all"
    *("name", "base.model", "data.images", "data.trigger", "data.class_words", "data.instance_prompt"),
    *("data.resolution", "data.repeats", "data.flip", "data.crop", "adapter.kind", "adapter.rank"),
    *("adapter.alpha", "objective.preservation", "training.steps", "training.batch_size"),
    *("training.learning_rate", "training.checkpoint_every", "validation.count", "samples.prompts"),
    *("samples.every", "export.sidecars", "export.title"),
}
_RANGES = {  # JSON Schema's words -> the sign before the number
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


@dataclass(frozen=True)
class FormField:
    """An option as a form shows it."""

    option: str  # with dots; of tables in a list "tokens[].token"
    kind: Kind
    help: str
    default: Value = None  # None: it is not there unless it is given
    is_required: bool = False
    choices: tuple[str, ...] = ()  # of a choice all, of others what is suggested
    limits: tuple[tuple[str, float], ...] = ()  # ("minimum", 1) and so on, in JSON Schema's words
    item: FormField | None = None  # of a list
    columns: tuple[FormField, ...] = ()  # of tables in a list

    @property
    def key(self) -> str:
        return self.option.rpartition(".")[2]

    @property
    def label(self) -> str:
        """Its name in words, as "learning rate"."""
        words = in_words(self.key)
        return words[:1].upper() + words[1:]

    @property
    def is_simple(self) -> bool:
        return self.option in _SIMPLE

    @property
    def allowed(self) -> str:
        """ "at least 1, at most 4096"; empty without limits."""
        return ", ".join(f"{_RANGES[word]} {number:g}" for word, number in self.limits)


@dataclass(frozen=True)
class FormTable:
    """A table of the recipe; of the recipe itself the name is empty."""

    name: str  # "training", or "data.regularization_images"
    help: str
    fields: tuple[FormField, ...]

    @property
    def title(self) -> str:
        words = in_words(self.name.rpartition(".")[2]) or "run"
        return words[:1].upper() + words[1:]


@cache
def form_tables() -> tuple[FormTable, ...]:
    """All tables with all options, in the recipe's order."""
    return tuple(_tables("", recipe_schema(), ""))


@cache
def form_fields() -> Mapping[str, FormField]:
    """Every option of the form by its name, in order; of tables in lists the list."""
    return {field.option: field for table in form_tables() for field in table.fields}


def search(words: str) -> list[FormField]:
    """The options in whose name, help or name in another trainer every word stands; those named so first."""
    wanted = words.casefold().replace("_", " ").split()
    elsewhere: dict[str, str] = {}
    for name, option in names_elsewhere().items():
        elsewhere[option] = f"{elsewhere.get(option, '')} {in_words(name)}"

    def rank(field: FormField) -> int:
        named = in_words(field.option.replace(".", " ")).casefold()
        columns = " ".join(f"{one.key} {one.help}" for one in field.columns)
        about = f"{named} {field.help} {columns} {elsewhere.get(field.option, '')}".casefold()
        if all(word in in_words(field.key) for word in wanted):
            return 0
        return 1 if all(word in named for word in wanted) else 2 if _all_in(wanted, in_words(about)) else 3

    ranked = sorted((rank(field), place, field) for place, field in enumerate(form_fields().values()))
    return [field for found, _, field in ranked if found < 3]


def _all_in(words: Iterable[str], text: str) -> bool:
    return all(word in text for word in words)


def _tables(name: str, schema: Mapping[str, Any], prefix: str) -> Iterator[FormTable]:
    """The table itself, then those in it."""
    inner, fields = [], []
    required = schema.get("required", ())
    for key, option in schema["properties"].items():
        if "$ref" in option:
            inner.append((f"{prefix}{key}", _definition(option)))
        else:
            fields.append(_field(f"{prefix}{key}", option, is_required=key in required))
    yield FormTable(name, schema.get("description", ""), tuple(fields))
    for table, definition in inner:
        yield from _tables(table, definition, f"{table}.")


def _definition(option: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = recipe_schema()["$defs"][option["$ref"].rpartition("/")[2]]
    return found


def _field(option: str, schema: Mapping[str, Any], *, is_required: bool = False) -> FormField:
    kind, choices = _kind(option, schema)
    item: FormField | None = None
    columns: tuple[FormField, ...] = ()
    if kind == "tables":
        table = _definition(schema["items"])
        columns = tuple(
            _field(f"{option}[].{key}", one, is_required=key in table.get("required", ()))
            for key, one in table["properties"].items()
        )
    elif kind == "list":
        item = _field(f"{option}[]", _items(schema))
        item = item if option not in _PATHS else FormField(item.option, "path", item.help)
    numeric = next((one for one in _branches(schema) if one.get("type") in ("integer", "number")), schema)
    ranges = {**schema, **numeric}
    limits = tuple((word, ranges[word]) for word in _RANGES if word in ranges)
    help_, default = schema.get("description", ""), schema.get("default")
    return FormField(option, kind, help_, default, is_required, choices, limits, item, columns)


def _items(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    lists = (one for one in _branches(schema) if one.get("type") == "array")
    found = next(lists)
    items: Mapping[str, Any] = found.get("items") or found["prefixItems"][0]
    return items


def _branches(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in (schema, *schema.get("anyOf", ())) if "type" in one or "enum" in one]


def _kind(option: str, schema: Mapping[str, Any]) -> tuple[Kind, tuple[str, ...]]:
    """Of one that may be of several types the kind that takes all of them, and what may be suggested."""
    branches = _branches(schema)
    types = {str(one.get("type")) for one in branches if "type" in one}
    named = [str(word) for one in branches for word in (*one.get("enum", ()), *_constant(one))]
    choices = tuple(dict.fromkeys(named))
    if "array" in types:
        return ("tables" if "$ref" in _items(schema) else "list"), ()
    if "object" in types:
        return "values", ()
    if types == {"boolean"}:
        return "yes_no", ()
    if types <= {"integer", "number"} or types == {"number", "boolean"}:
        return ("integer" if types == {"integer"} else "number"), ()
    if "boolean" in types:
        return "either", (*choices, "true", "false")
    if types & {"integer", "number"}:
        return "either", choices
    if choices:
        return ("either" if len(schema.get("anyOf", ())) > 1 else "choice"), choices
    return ("path" if option in _PATHS else "text"), ()


def _constant(schema: Mapping[str, Any]) -> tuple[str, ...]:
    return (schema["const"],) if "const" in schema else ()
