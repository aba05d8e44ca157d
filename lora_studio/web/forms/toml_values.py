"""Values as TOML spells them, as a person would write them into a recipe."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import tomli_w

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST_LINE = 100  # letters of a list in one line


def key_text(key: str) -> str:
    """A key of a table, in quotes where it needs them."""
    return key if _BARE.fullmatch(key) else quoted(key)


def quoted(text: str) -> str:
    """A string in double quotes, on one line."""
    return tomli_w.dumps({"value": text}).removeprefix("value = ").rstrip("\n")


def value_text(value: Any, *, one_line: bool = True) -> str:
    """The value as it stands behind `key = `. Not `one_line`: a long list has a line for each text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key_text(key)} = {value_text(one)}" for key, one in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list | tuple):
        parts = [value_text(one) for one in value]
        inside = ", ".join(parts)
        if one_line or len(inside) <= _LONGEST_LINE:
            return f"[{inside}]"
        return "[\n" + "".join(f"  {part},\n" for part in parts) + "]"
    return quoted(str(value))


def _float(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    text = repr(value)
    return text.replace("e-0", "e-").replace("e+", "e")
