"""What a sweep varies: options with lists of values or ranges, read from what people write."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lora_studio.errors import RecipeError
from lora_studio.recipe import FREE, fields
from lora_studio.recipe.load import value_of
from lora_studio.recipe.renamed import current_name
from lora_studio.recipe.section import kinds_of
from lora_studio.recipe.sweep import Given, Value

_RANGE = re.compile(r"\s*(log|lin)\s*:\s*(\S+?)\s*\.\.\s*(\S+)\s*")
_ODD_RANGE = re.compile(r"\s*\w+\s*:.*|.*\d\s*\.\.\s*[\d.+-].*")
_WHOLE = re.compile(r"[+-]?\d{1,18}")
_DIGITS = 4  # of a number that is drawn: more say nothing, and are no help to a reader
FORMS = "a list of values such as 4,8,16, log:A..B or lin:A..B"
_OTHERWISE = {  # options that are learned from, and what to do instead
    "training.seed": "seeds are trained with --seeds",
    "base.model": "figures of two bases mean different things, so each base has its own sweep",
    "name": "each trial has its own folder",
}


@dataclass(frozen=True)
class Varied:
    """An option, and what it may be: one of `values`, or anything from `low` to `high`."""

    option: str
    values: tuple[Value, ...] = ()
    scale: Literal["list", "log", "lin"] = "list"
    low: float = 0.0
    high: float = 0.0
    whole: bool = False  # integers alone

    def drawn(self, chance: random.Random) -> Value:
        """One of them, all equally likely; in a range of `log` so are all factors."""
        share = chance.random()
        if self.scale == "list":
            return self.values[int(share * len(self.values))]
        if self.scale == "log":
            value = math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        else:
            value = self.low + share * (self.high - self.low)
        return self.rounded(value)

    def rounded(self, value: float) -> Value:
        """A number of the range as it is tried and written."""
        value = float(f"{value:.{_DIGITS}g}")
        return round(value) if self.whole else min(max(value, self.low), self.high)

    @property
    def in_words(self) -> str:
        """What it may be, for people."""
        if self.scale == "list":
            return ", ".join(map(shown_value, self.values))
        what = "whole numbers" if self.whole else "numbers"
        how = "evenly by factors" if self.scale == "log" else "evenly"
        return f"{what} from {self.low:g} to {self.high:g}, {how}"


def shown_value(value: object) -> str:
    """As --set takes it, but for quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown_value, value))}]"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def read_vary(words: Sequence[str]) -> dict[str, str]:
    """KEY=VALUES of the command line. Raises RecipeError for what is none, or a key that comes twice."""
    found: dict[str, str] = {}
    for one in words:
        option, equals, values = one.partition("=")
        if not equals or not option.strip() or not values.strip():
            raise RecipeError(f"--vary {one!r} is not key=values; write for example adapter.rank=4,8,16.")
        if option.strip() in found:
            raise RecipeError(f"--vary names {option.strip()} twice; give all its values at once.")
        found[option.strip()] = values
    return found


def varied_of(given: Mapping[str, Given]) -> tuple[Varied, ...]:
    """Each option with its values. Raises RecipeError that lists all that cannot be varied, or not so."""
    if not given:
        raise RecipeError(
            f"nothing is varied; give --vary KEY=VALUES, with {FORMS}, or a [sweep] table in the recipe."
        )
    found, faults = list[Varied](), list[str]()
    for option, values in given.items():
        try:
            found.append(_varied(current_name(option), values))
        except RecipeError as error:
            faults.append(str(error))
    if faults:
        raise RecipeError("\n".join(faults))
    return tuple(found)


def _varied(option: str, given: Given) -> Varied:
    if advice := _OTHERWISE.get(option):
        raise RecipeError(f"{option} is not varied: {advice}.")
    if option in FREE:
        raise RecipeError(
            f"{option} is not varied: what is learned stays the same with every value; set it with --set."
        )
    if isinstance(given, str):
        if found := _RANGE.fullmatch(given):
            return _range(option, "log" if found[1] == "log" else "lin", found[2], found[3])
        if _ODD_RANGE.fullmatch(given) and "," not in given:
            raise RecipeError(f"{option} has {given!r}, which is no range; give {FORMS}.")
        given = tuple(value_of(one.strip(), option) for one in _split(given))
        given = tuple(tuple(one) if isinstance(one, list) else one for one in given)
    if len(given) < 2:
        raise RecipeError(
            f"{option} has one value, {shown_value(given[0] if given else '')}; give two or more, or set it "
            "with --set."
        )
    told = [repr(one) for one in given]
    if twice := next((one for one in told if told.count(one) > 1), ""):
        raise RecipeError(f"{option} has {twice} twice; give each value once.")
    return Varied(option, given)


def _range(option: str, scale: Literal["log", "lin"], first: str, last: str) -> Varied:
    try:
        low, high = float(first), float(last)
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise RecipeError(f"{option} has {scale}:{first}..{last}; write two numbers, the lower one first.")
    if scale == "log" and low <= 0:
        raise RecipeError(f"{option} has log:{first}..{last}; factors begin above 0: use lin:, or a list.")
    kinds = next((kinds_of(s.model_fields[n].annotation) for o, s, n in fields() if o == option), set())
    are_whole = bool(_WHOLE.fullmatch(first) and _WHOLE.fullmatch(last))
    if int in kinds and float not in kinds and not are_whole:
        raise RecipeError(f"{option} takes whole numbers; write {scale}:{int(low)}..{int(high)} or so.")
    return Varied(option, (), scale, low, high, whole=are_whole and int in kinds)


def _split(text: str) -> Iterator[str]:
    """At commas that are in no brackets and no quotes."""
    depth, quote, piece = 0, "", ""
    for letter in text:
        if letter == "," and not depth and not quote:
            yield piece
            piece = ""
            continue
        if letter in "\"'" and quote in ("", letter):
            quote = "" if quote else letter
        elif not quote:
            depth += (letter in "[{") - (letter in "]}")
        piece += letter
    yield piece
