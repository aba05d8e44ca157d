"""What is different between two recipes, and which differences a resume may have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from lora_studio.recipe import Recipe
from lora_studio.recipe.section import Section


class RecipeChange(NamedTuple):
    """An option that differs."""

    option: str  # with dots: "training.steps"
    before: object
    after: object

    def __str__(self) -> str:
        return f"{self.option}: {self.before!r} -> {self.after!r}"

    @property
    def resume_safe(self) -> bool:
        """Whether what is learned stays the same."""
        return self.option in FREE


def changes(old: Recipe, new: Recipe) -> list[RecipeChange]:
    """Every option that differs."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    return [
        RecipeChange(option, before.get(option), after.get(option))
        for option in dict.fromkeys([*before, *after])
        if before.get(option) != after.get(option)
    ]


def options(section: type[Section] = Recipe, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Every option with its dotted name, and whether a resume may change it."""
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from options(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, section.is_resume_safe(name)


FREE = frozenset(name for name, resume_safe in options() if resume_safe)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
