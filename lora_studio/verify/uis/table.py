"""The rows of what can be the matter with a file, and what each UI does then."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from lora_studio.families.layer_names import DENOISER_TITLE
from lora_studio.families.layer_names.transformers import layout_tables
from lora_studio.text import plural

UIS = ("ComfyUI", "A1111", "Forge", "InvokeAI", "stable-diffusion.cpp", "diffusers", "kohya")
DIFFUSERS = "diffusers"


class Loss(StrEnum):
    """What a UI's behaviour costs."""

    NONE = "nothing is lost"
    LAYERS = "the layers are lost"
    WRONG = "the layers are there, but not as they were trained"
    FILE = "the file is lost"
    NO_BASE = "there is nothing to load it into"
    UNKNOWN = "not tried"


@dataclass(frozen=True)
class UiRow:
    """What can be the matter with a file, and what each UI that minds does then."""

    what: str
    does: Mapping[str, tuple[Loss, str]]
    is_gap: bool  # it cannot do that with any file for the base: no fault of the file


@cache
def table() -> dict[str, UiRow]:
    """`table.toml`, which says how it is read, and the rows of transformers. Raises as `read_rows`."""
    return read_rows(_toml("table.toml")) | dict(transformer_rows().rows)


def _toml(name: str) -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / name).read_text("utf-8"))


def read_rows(tables: Mapping[str, dict[str, Any]]) -> dict[str, UiRow]:
    """Rows by their names. Raises ValueError for a UI twice in a row or not known."""
    rows = {}
    for name, row in tables.items():
        what, is_gap = row.pop("what"), row.pop("gap", False)
        does: dict[str, tuple[Loss, str]] = {}
        for loss, behaviours in row.items():
            for words, uis in behaviours.items():
                uis = UIS if uis == "all" else uis
                if does.keys() & set(uis) or not set(UIS).issuperset(uis):
                    raise ValueError(f"{name}: {words!r} is of {uis}; each UI of {UIS} may be named once")
                does |= dict.fromkeys(uis, (Loss[loss.upper()], words))
        rows[name] = UiRow(what, does, is_gap)
    return rows


ANY = "any"  # the table of rows for every family
_ABOUT_FILES = ("written", "lacks", "titles", "of")


@dataclass(frozen=True)
class WhenTrue:
    """Of which files a row is true, and which of their layers it concerns."""

    written: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()  # regular expressions of diffusers' paths
    titles: tuple[str, ...] = ()
    of: str = ""  # a regular expression of paths as they stand in the file


@dataclass(frozen=True)
class TransformerRows:
    rows: Mapping[str, UiRow]
    when: Mapping[str, WhenTrue]


@cache
def transformer_rows() -> TransformerRows:
    """`<family>.<row>` -> the row: each family's own, and `transformers.toml`. Raises as `read_rows`."""
    rows: dict[str, UiRow] = {}
    when: dict[str, WhenTrue] = {}
    tables = layout_tables()
    of_families = [(family, table["uis"], table.get("like")) for family, table in tables.items()]
    for family, table, like in [*of_families, (ANY, _toml("transformers.toml"), None)]:
        for name, row in table.items():
            about = {key: row.pop(key) for key in _ABOUT_FILES if key in row}
            when[f"{family}.{name}"] = _when(about)
        rows |= read_rows({f"{family}.{name}": row for name, row in table.items()})
        if like is not None:
            rows = _inherited(rows, family, like) | rows
            when = {
                _own(key, family, like): one for key, one in when.items() if key.startswith(f"{like}.")
            } | when
    return TransformerRows(rows, {key: one for key, one in when.items() if key in rows})


def _when(about: Mapping[str, Any]) -> WhenTrue:
    lists = {key: tuple(one) for key, one in about.items() if key != "of"}
    return WhenTrue(**lists, of=about.get("of", ""))


def _own(key: str, family: str, like: str) -> str:
    return f"{family}.{key.removeprefix(f'{like}.')}"


def _inherited(rows: Mapping[str, UiRow], family: str, like: str) -> dict[str, UiRow]:
    """Those of the family that it is like, without the UIs that have no such base."""
    without = rows[f"{family}.no_base"].does
    found = {}
    for key, row in rows.items():
        does = {ui: one for ui, one in row.does.items() if ui not in without}
        if key.startswith(f"{like}.") and does:
            found[_own(key, family, like)] = replace(row, does=does)
    return found


@dataclass(frozen=True)
class UiFinding:
    """A row of the table that is true of a file, and of which of its layers or keys."""

    row: str
    concerns: Sequence[str] = ()

    def in_words(self, base: str) -> str:
        number = len(self.concerns)
        counts = {what: plural(number, what[:-1]) for what in ("layers", "keys")}
        first = self.concerns[0] if number else ""
        return table()[self.row].what.format(base=base, first=first, denoiser=DENOISER_TITLE, **counts)
