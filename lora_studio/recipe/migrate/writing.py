"""The recipe as a file: what was taken over and what was not in comments, then the options as TOML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tomli_w

from lora_studio.recipe.migrate.draft import IN_PARTS, Draft, Fate, KeyFate
from lora_studio.text import shown

HEADINGS: dict[Fate, str] = {
    "exactly": "taken over exactly",
    "another meaning": "taken over with another meaning",
    "not supported": "not supported",
    "unknown": "unknown",
}


def rows_of(fates: Sequence[KeyFate], fate: Fate) -> list[tuple[str, str]]:
    """What stands there, and what became of it; equal rows once."""
    rows = []
    for one in fates:
        if one.fate == fate and one.why != IN_PARTS:
            text = ": ".join(filter(None, (one.here, one.why)))
            rows.append((one.there, text or "as it is"))
    return list(dict.fromkeys(rows))


def not_needed(fates: Sequence[KeyFate]) -> list[str]:
    """Keys that ask for nothing that a recipe has to say."""
    return list(dict.fromkeys(shown(one.key) for one in fates if one.fate == "not needed"))


def text_of(draft: Draft, *, source: Path, title: str) -> str:
    """The whole file, without the line for editors."""
    lines = [f"Taken over from {shown(source.name)}, settings of {title}, by lora-studio init --from."]
    for fate, heading in HEADINGS.items():
        if rows := rows_of(draft.fates, fate):
            lines += ["", f"{heading[0].upper()}{heading[1:]}:"]
            arrow = " -> " if fate in ("exactly", "another meaning") else ": "
            lines += [f"  {there}{arrow}{text}" for there, text in rows]
    if idle := not_needed(draft.fates):
        lines += ["", f"Not needed: {', '.join(idle)}."]
    if draft.notes:
        lines += ["", "Notes:", *(f"  {shown(note)}." for note in dict.fromkeys(draft.notes))]
    comments = "".join(f"# {line}".rstrip() + "\n" for line in lines)
    return f"{comments}\n{tomli_w.dumps(draft.nested())}"
