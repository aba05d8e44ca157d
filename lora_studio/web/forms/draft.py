"""A recipe while it is written: its text and its form, of which either may be changed."""

from __future__ import annotations

import re
import tomllib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.errors import RecipeError, RenamedOption
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import find_faults, recipe_from
from lora_studio.recipe.renamed import with_current_names
from lora_studio.recipe.toml import plain_values
from lora_studio.web.forms import form_fields, form_tables
from lora_studio.web.forms.entries import Entry, entries_of, entry_of, is_default, put, value_at, value_of
from lora_studio.web.forms.toml_text import rewritten

_MOST_LETTERS = 1_000_000  # as of a recipe's file
_IN_A_LIST = re.compile(r"([a-z_.]+)\[(\d+)\](?:\.(\w+))?")


@dataclass(frozen=True)
class Fault:
    """A sentence, as the command line has it, and the field that it stands at."""

    option: str  # "" for what concerns no field, such as text that is not TOML
    sentence: str
    row: int | None = None  # of tables in a list which one
    column: str = ""


class RecipeDraft:
    """Text and form say the same as long as the text is TOML; else the form keeps what was said last.

    `folder`: where relative paths in it are taken from.
    """

    def __init__(self, text: str, folder: Path) -> None:
        self.folder = folder
        self.text = ""
        self.values: dict[str, Any] = {}
        self.syntax_fault = ""
        self.set_text(text)

    def set_text(self, text: str) -> None:
        """Take over what was typed as TOML; what is wrong with it stands in `faults`."""
        self.text = text.replace("\r\n", "\n")
        if len(text) > _MOST_LETTERS:
            self.syntax_fault = (
                f"the text has {len(text):,} letters; no recipe has more than {_MOST_LETTERS:,}."
            )
            return
        try:
            self.values = plain_values(self.text, "the text")
            self.syntax_fault = ""
        except tomllib.TOMLDecodeError as error:
            self.syntax_fault = f"the text is not valid TOML: {error}."
        except RecipeError as error:
            self.syntax_fault = str(error)

    def entry(self, option: str) -> Entry:
        """What the option's field shows; None where the recipe does not have it."""
        return entry_of(form_fields()[option], value_at(self._named(), option))

    @property
    def entries(self) -> dict[str, Entry]:
        return entries_of(self._named())

    def shown(self, option: str) -> Entry:
        """What the field shows where the recipe does not have it: the default."""
        field, entry = form_fields()[option], self.entry(option)
        usual = field.default
        whole = isinstance(usual, float) and usual == int(usual)
        return entry_of(field, int(usual) if whole else usual) if entry is None else entry

    def set(self, option: str, entry: Entry) -> None:
        """Fill in a field; None, and what is the default, is taken out of the text.

        Raises RecipeError while the text is not TOML: what was typed there would be lost.
        """
        if self.syntax_fault:
            raise RecipeError(f"{self.syntax_fault} Mend the text first, then the form can change it.")
        field, values = form_fields()[option], self._named()
        value = value_of(field, entry)
        if value == "" and field.default is None and not field.is_required:
            value = None
        put(values, option, None if is_default(field, value) else value)
        self.text = rewritten(self.text, values)
        self.values = values

    def reset(self, option: str) -> None:
        self.set(option, None)

    @property
    def changed(self) -> frozenset[str]:
        """The options that the recipe has, also one that is as usual."""
        values = self._named()
        return frozenset(option for option in form_fields() if value_at(values, option) is not None)

    @property
    def faults(self) -> list[Fault]:
        """All that is wrong, each sentence once and at its field."""
        if self.syntax_fault:
            return [Fault("", self.syntax_fault)]
        found = find_faults(self.values, folder=self.folder)
        faults = [_at_field(one.place, line) for one in found for line in one.sentence.split("\n  ")]
        return list(dict.fromkeys(faults))

    def recipe(self) -> Recipe:
        """Raises RecipeError that lists every fault, as on the command line."""
        if self.syntax_fault:
            raise RecipeError(self.syntax_fault)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RenamedOption)
            return recipe_from(self.values, folder=self.folder, source="the recipe")

    def _named(self) -> dict[str, Any]:
        """The values under current names, as the fields have them."""
        return with_current_names(self.values, lambda old, new: None)[0]


def _at_field(place: str, sentence: str) -> Fault:
    """At its place; of a fault of a whole table at the first option that the sentence names."""
    fields = form_fields()
    if place in fields:
        return Fault(place, sentence)
    if sentence.startswith("unknown key"):  # which no field has, though the sentence may name one
        return Fault("", sentence)
    if (inside := _IN_A_LIST.match(place)) and inside[1] in fields:
        return Fault(inside[1], sentence, int(inside[2]), inside[3] or "")
    named = re.findall(r"[a-z][a-z_]*(?:\.[a-z_]+)+", sentence)
    if option := next((one for one in named if one in fields), ""):
        return Fault(option, sentence)
    first = re.split(r"[:\s]", sentence, maxsplit=1)[0]
    if option := next((one for one in (f"{place}.{first}", first) if one in fields), ""):
        return Fault(option, sentence)
    missing = (one for table in form_tables() if table.name == place for one in table.fields if one.is_simple)
    return Fault(next((one.option for one in missing), ""), sentence)
