"""A recipe in the making, and what became of each key of another trainer's settings."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from lora_studio.errors import RecipeError
from lora_studio.recipe import fields
from lora_studio.recipe.migrate.values import (
    _LONGEST,
    as_toml,
    default_of,
    is_off,
    is_one_of,
    number_in,
    of_kind,
    said_of,
    whole_in,
    yes_in,
)
from lora_studio.text import shown

Fate = Literal["exactly", "another meaning", "not supported", "not needed", "unknown"]
_SECRETS = ("token", "api_key", "access_key", "secret", "password")
IN_PARTS = "in its parts"
ALL_THERE_IS = "a run's folder has checkpoints, previews and logs; train --out names another"


@dataclass(frozen=True)
class KeyFate:
    """What became of a key."""

    key: str  # as it stands there; of tables within tables with dots
    value: object
    fate: Fate
    here: str = ""  # the option and its value
    why: str = ""  # what differs, or what to do
    given: bool = True  # False: it is not there, but their default matters

    @property
    def there(self) -> str:
        """The key with its value, on one line; of what looks like a password the key alone."""
        if any(self.key.lower().endswith(word) for word in _SECRETS) and not is_off(self.value):
            return f"{shown(self.key)} (not copied)"
        value = shown(str(self.value), limit=_LONGEST)
        return f"{shown(self.key)} = {value}{'' if self.given else ' (their default)'}"


@dataclass(frozen=True)
class Rule:
    """What becomes of a key whatever its value is, as a line of a trainer's table."""

    fate: Fate
    option: str = ""
    why: str = ""
    off: tuple[object, ...] = ()  # values that ask for nothing, beside empty ones and 0


def same(option: str, why: str = "") -> Rule:
    """Taken over as it is; with `why` it means something else here."""
    return Rule("another meaning" if why else "exactly", option, why)


def lacks(why: str, *off: object) -> Rule:
    """Not there; `why` says what to do. `off`: values that switch it off."""
    return Rule("not supported", why=why, off=off)


def idle(why: str) -> Rule:
    """Nothing that a recipe has to say."""
    return Rule("not needed", why=why)


def each(names: str, rule: Rule) -> dict[str, Rule]:
    return {name: rule for name in names.split()}


@cache
def rules(trainer: str, table: str = "settings", *, handled: bool = True) -> Mapping[str, Rule]:
    """The keys of one of a trainer's tables, from its file; `handled`: also those of its module."""
    text = files(__package__).joinpath("tables", f"{trainer}.toml").read_text("utf-8")
    data = tomllib.loads(text)
    found = each(data["handled"] if handled else "", lacks("not used with the other settings"))
    for key, said in data[table].get("take", {}).items():
        found[key] = same(said) if isinstance(said, str) else same(*said)
    for one in data[table].get("lacks", []):
        found |= each(one["keys"], lacks(one["do"], *one.get("off", ())))
    for one in data[table].get("idle", []):
        found |= each(one["keys"], idle(one["why"]))
    return found


@dataclass
class Draft:
    """Values by dotted option, and the fates so far."""

    values: dict[str, Any] = field(default_factory=dict)
    fates: list[KeyFate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what no single key says
    is_flow: bool = False  # whether the base was trained by flow matching

    def drop(self, option: str, why: str) -> None:
        """Take an option back, and say of the keys that led to it that they are not supported."""
        self.values.pop(option, None)
        self._tell_of(option, "not supported", why)

    def overrule(self, option: str, why: str) -> None:
        """Another value takes the place of the one that keys led to."""
        self._tell_of(option, "not needed", why)

    def _tell_of(self, option: str, fate: Fate, why: str) -> None:
        self.fates = [
            replace(one, fate=fate, here="", why=why) if one.here.partition(" = ")[0] == option else one
            for one in self.fates
        ]

    def nested(self) -> dict[str, Any]:
        """As TOML has them, in the order of the recipe's sections."""
        tables: dict[str, Any] = {}
        order = {option: number for number, (option, _, _) in enumerate(fields())}
        for option in sorted(self.values, key=lambda one: order.get(one, len(order))):
            *sections, last = option.split(".")
            table = tables
            for section in sections:
                table = table.setdefault(section, {})
            table[last] = self.values[option]
        return tables


class Settings:
    """One table of another trainer's settings: each key is told of once, and none is dropped."""

    def __init__(
        self,
        draft: Draft,
        values: Mapping[str, Any],
        *,
        defaults: Mapping[str, Any] | None = None,
        prefix: str = "",
        source: str = "",
    ) -> None:
        if not isinstance(values, Mapping):
            raise RecipeError(
                f"{shown(prefix.rstrip('.') or source)} is {said_of(values)}; it must be a table."
            )
        self.draft, self.values, self.defaults = draft, dict(values), dict(defaults or {})
        self.prefix, self.source, self.told = prefix, source, set[str]()

    def has(self, key: str) -> bool:
        """Whether it is there and not left blank."""
        return self.values.get(key) not in (None, "")

    def get(self, key: str) -> Any:
        """As it stands there, or their default."""
        return self.values[key] if self.has(key) else self.defaults.get(key)

    def number(self, key: str) -> float | None:
        return None if (value := self.get(key)) is None else number_in(value, self._named(key))

    def whole(self, key: str) -> int | None:
        return None if (value := self.get(key)) is None else whole_in(value, self._named(key))

    def yes(self, key: str) -> bool:
        return yes_in(self.get(key), self._named(key))

    def text(self, key: str) -> str:
        value = self.get(key)
        return "" if value is None or isinstance(value, bool) else str(value).strip()

    def exactly(self, key: str, option: str, value: Any) -> None:
        self._take(key, option, value, "exactly", "")

    def changed(self, key: str, option: str, value: Any, why: str) -> None:
        self._take(key, option, value, "another meaning", why)

    def unsupported(self, key: str, why: str) -> None:
        self._tell(key, "not supported", why=why)

    def needless(self, key: str, why: str) -> None:
        self._tell(key, "not needed", why=why)

    def along(self, key: str, of: str) -> None:
        """What only tells how another key is meant."""
        self._tell(key, "exactly", why=f"with {of}")

    def in_parts(self, key: str) -> None:
        """A table or list, of whose parts each is told of by itself."""
        self._tell(key, "exactly", why=IN_PARTS)

    def part(self, key: str) -> Settings:
        """The table with this name in it; empty if there is none. `in_parts` tells of the name itself."""
        found = self.get(key)
        values = found if isinstance(found, dict) else {}
        return Settings(self.draft, values, prefix=f"{self.prefix}{key}.", source=self.source)

    def first(self, key: str, winner: str) -> None:
        """What another key of the settings takes the place of."""
        self._tell(key, "not needed", why=f"{winner} comes first")

    def moved(self, key: str, why: str) -> None:
        """Taken over, but not as it stands there."""
        self._tell(key, "another meaning", why=why)

    def by_table(self, table: Mapping[str, Rule]) -> None:
        """The keys of a table that were not told of yet; all others stay as they are."""
        for key in self.values:
            if key in table and key not in self.told:
                self._apply(key, table[key])

    def off_or(self, key: str, why: str, *off: object) -> None:
        """Not supported, unless its value asks for nothing or it is not there at all."""
        if key in self.values:
            self._apply(key, lacks(why, *off))

    def finish(self, table: Mapping[str, Rule]) -> None:
        """All keys that were not told of yet, by the table; what that lacks is unknown."""
        for key in self.values:
            if key in self.told:
                continue
            if rule := table.get(key):
                self._apply(key, rule)
            else:
                self._tell(key, "unknown", why="not known of this trainer; look whether it matters")
        for key in self.defaults:
            if key not in self.values and key not in self.told and key in table:
                self._apply(key, table[key])

    def _apply(self, key: str, rule: Rule) -> None:
        value = self.get(key)
        if not rule.option:
            if rule.fate == "not supported" and (is_off(value) or is_one_of(value, rule.off)):
                self._tell(key, "not needed", why="off")
            elif key in self.values:
                self._tell(key, rule.fate, why=rule.why)
            return
        if value in (None, ""):
            self._tell(key, "not needed", why="left blank")
            return
        taken = of_kind(rule.option, value, self._named(key))
        self._take(key, rule.option, taken, rule.fate, rule.why)

    def _take(self, key: str, option: str, value: Any, fate: Fate, why: str) -> None:
        given, usual = self.has(key), default_of(option)
        if value == usual and not given:
            self.told.add(key)
            return
        self.draft.values[option] = value
        self._tell(key, fate, here=f"{option} = {as_toml(value)}", why=why)

    def _tell(self, key: str, fate: Fate, *, here: str = "", why: str = "") -> None:
        self.told.add(key)
        if key in self.values or here or fate == "not supported":
            given = key in self.values
            value = self.values[key] if given else self.defaults.get(key)
            self.draft.fates.append(KeyFate(f"{self.prefix}{key}", value, fate, here, why, given))

    def _named(self, key: str) -> str:
        return f"{self.prefix}{key}{f' in {self.source}' if self.source else ''}"
