"""Other prompts for a run's next previews, asked for while it is at work: a file in its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from lora_studio.errors import RecipeError, StudioError
from lora_studio.files import write_atomically
from lora_studio.recipe.training import SamplesConfig

ASKED_PROMPTS = "previews/prompts.json"
MOST_PROMPTS = 100
_MOST_BYTES = 2**20


def ask_for_prompts(folder: Path, prompts: Sequence[str]) -> tuple[str, ...]:
    """Have the run in the folder draw these from its next previews on; the prompts as it will read them.

    Raises RecipeError for prompts that no recipe could have, none and too many, and StudioError for a folder
    that cannot be written.
    """
    if not 0 < len(prompts) <= MOST_PROMPTS:
        raise RecipeError(f"{len(prompts)} prompts are given; give 1 to {MOST_PROMPTS}, one a line.")
    try:
        asked = SamplesConfig(prompts=tuple(prompts)).prompts
    except ValidationError as error:
        raise RecipeError(f"a prompt cannot be used: {error.errors()[0]['msg']}.") from None
    path = folder / ASKED_PROMPTS
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps(asked, ensure_ascii=False).encode())
    except OSError as error:
        raise StudioError(f"{path} cannot be written ({error.strerror or error}).") from None
    return asked


def asked_prompts(folder: Path) -> tuple[str, ...] | None:
    """What was asked for last; None if nothing was, or what is there cannot be read."""
    try:
        with (folder / ASKED_PROMPTS).open("rb") as file:
            content = file.read(_MOST_BYTES)
        return prompts_in(content.decode("utf-8"))
    except (OSError, ValueError):
        return None


def prompts_in(text: str) -> tuple[str, ...] | None:
    """The prompts of a JSON list; None if it is none that could be drawn."""
    try:
        prompts = SamplesConfig.model_validate({"prompts": json.loads(text)}).prompts
    except (ValueError, RecursionError):
        return None
    return prompts if 0 < len(prompts) <= MOST_PROMPTS else None
