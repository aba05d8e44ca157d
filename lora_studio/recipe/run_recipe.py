"""The recipe as a run keeps it in its folder: with a digest, and with paths that are found after a move."""

from __future__ import annotations

import hashlib
import ntpath
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_studio.recipe import Recipe
from lora_studio.recipe.load import recipe_in
from lora_studio.recipe.toml import read_toml
from lora_studio.runs.reading import INPUTS, SEAL, damaged, inputs_before, read_bytes, read_table

RUN_RECIPE = "recipe.toml"  # in a run's folder: the recipe as run
FOLDER = "run.folder"  # in inputs.json: where the folder lay
_SEAL = re.compile(rb"# as run; sha256 of what follows: ([0-9a-f]{64})\n")
_PATHS = {"exclude", "file", "images", "init_from", "masks", "model", "tokenizer", "vae"}


def with_seal(text: str) -> str:
    """A recipe's TOML with its digest in the first line."""
    return f"# as run; sha256 of what follows: {hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def load_run_recipe(folder: Path, changes: Sequence[str] = ()) -> Recipe:
    """The recipe in a run's folder; that of an earlier version may have other names, and nothing is said.

    Raises CheckpointError if it is damaged or missing, and RecipeError for `changes`.
    """
    path, before = folder / RUN_RECIPE, inputs_before(folder)
    content = read_bytes(path)
    if (seal := _SEAL.match(content)) is None and before and SEAL in read_table(folder / INPUTS):
        raise damaged(path, "its digest is missing")
    if seal is not None and hashlib.sha256(content[seal.end() :]).hexdigest() != seal[1].decode():
        raise damaged(path, "its digest is another; options are changed with --set")
    values = read_toml(path)
    if FOLDER in before:
        _find_again(values, before[FOLDER], folder.resolve())
    return recipe_in(path, values, changes, on_old=lambda old, new: None)


def _find_again(value: Any, before: str, now: Path) -> None:
    """Paths that are gone, if what they name has moved together with the run's folder."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, str) and name in _PATHS:
                value[name] = _moved(inner, before, now)
            else:
                _find_again(inner, before, now)
    elif isinstance(value, list):
        for inner in value:
            _find_again(inner, before, now)


def _moved(path: str, before: str, now: Path) -> str:
    system = ntpath if re.match(r"[A-Za-z]:|\\\\", before) else posixpath
    if not system.isabs(path) or Path(path).exists():
        return path
    try:
        seen = system.relpath(path, before)
    except ValueError:  # on another drive of Windows
        return path
    place = (now / seen.replace(system.sep, "/")).resolve()
    return str(place) if place.exists() else path
