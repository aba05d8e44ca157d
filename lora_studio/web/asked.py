"""Verbs that the page and the API may queue, with the options that they may give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_studio.errors import StudioError
from lora_studio.jobs import Job
from lora_studio.jobs.adding import verb
from lora_studio.text import shown

VERB_OPTIONS: dict[str, tuple[str, ...]] = {
    "evaluate": ("count", "strength", "checkpoint", "seeds", "encoder", "trigger", "class-word", "steps"),
    "choose": ("strengths", "count", "drift", "leakage", "encoder", "grid"),
    "export": ("to", "checkpoint", "dtype", "force"),
    "sample": ("prompt", "negative", "seeds", "strength", "checkpoint", "grid", "steps", "guidance", "size"),
    "verify": ("base",),
    "assess": (),
}
"""None of them names a file or folder: those are the folder's own."""
_MOST_LETTERS = 2000


@dataclass(frozen=True)
class AskedVerb:
    """`target` is within the allowed folders."""

    name: str
    target: Path
    options: Mapping[str, str | float | int | bool]

    @property
    def arguments(self) -> list[str]:
        """Each option in one word with its value, so that none can pass for another.

        Raises StudioError for a verb or an option that may not be asked for here.
        """
        if self.name not in VERB_OPTIONS:
            raise StudioError(f"the verb {shown(self.name, limit=60)!r} cannot be asked for here.")
        words = []
        for name, value in self.options.items():
            if name not in VERB_OPTIONS[self.name]:
                known = ", ".join(VERB_OPTIONS[self.name]) or "none"
                raise StudioError(
                    f"{self.name} has no option {shown(name, limit=60)!r} here; it may have: {known}."
                )
            if isinstance(value, bool):
                words += [f"--{name}"] if value else []
            elif len(text := str(value)) > _MOST_LETTERS or "\0" in text:
                raise StudioError(f"{name} has {len(text):,} letters; {_MOST_LETTERS:,} are allowed.")
            else:
                words.append(f"--{name}={text}")
        return [*words, "--", str(self.target)]


def verb_job(asked: AskedVerb) -> Job:
    """Raises StudioError as `arguments` does, and for a target that is not there."""
    if not asked.target.exists():
        raise StudioError(
            f"there is no {shown(str(asked.target), limit=300)}; give a run's folder or a file."
        )
    return verb(asked.name, asked.arguments)
