"""Tables of things that recipes name, imported only when asked for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import Generic, TypeVar, cast

from lora_studio.errors import RecipeError

T = TypeVar("T")


def did_you_mean(word: str, allowed: list[str], *, renamed: Mapping[str, str] | None = None) -> str:
    """ "; did you mean 'x'?" for the closest word of `allowed`, or of the keys of `renamed`; else nothing."""
    current = renamed or {}
    close = difflib.get_close_matches(word, [*allowed, *current], n=1, cutoff=0.6)
    return f"; did you mean {current.get(close[0], close[0])!r}?" if close else ""


def unknown(kind: str, name: str, known: list[str]) -> str:
    return f"unknown {kind} {name!r}{did_you_mean(name, known) or '.'} Known: {', '.join(known)}."


class Registry(Generic[T]):
    """Names to `module:attribute`; `registry[name]` imports the attribute."""

    def __init__(self, kind: str, entries: dict[str, str]) -> None:
        self.kind, self.entries = kind, entries

    def names(self) -> list[str]:
        return list(self.entries)

    def check(self, name: str) -> None:
        """Raise RecipeError, with a suggestion, if the table has no such name."""
        if name not in self.entries:
            raise RecipeError(unknown(self.kind, name, self.names()))

    def __getitem__(self, name: str) -> T:
        self.check(name)
        module, _, attribute = self.entries[name].partition(":")
        return cast(T, getattr(import_module(module), attribute))
