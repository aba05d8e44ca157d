"""What may stand in the queue: trainings, checked before they are added, and other verbs as typed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lora_studio.errors import RecipeError
from lora_studio.files import digest
from lora_studio.jobs import Job
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import run_folder
from lora_studio.text import shown

VERBS = ("evaluate", "assess", "choose", "caption", "regularization-images", "export", "sample", "verify")
"""Beside train, which is a recipe."""


def training(recipe: Path, changes: Sequence[str], out: Path | None) -> Job:
    """A recipe's. Raises RecipeError for all that is wrong with it, as `train` would hours later."""
    loaded = load_recipe(recipe, changes=tuple(changes))
    file, run = recipe.resolve(), (out or run_folder(loaded.name)).absolute()
    arguments = ("train", str(file), "--out", str(run), *_sets(changes))
    return Job(arguments, os.getcwd(), str(run), str(file), digest(file))


def verb(name: str, arguments: Sequence[str]) -> Job:
    """Any of `VERBS`, with what is typed behind it."""
    return Job((name, *arguments), os.getcwd())


def _sets(changes: Sequence[str]) -> list[str]:
    return [part for change in changes for part in ("--set", change)]


def job_of(what: str, arguments: Sequence[str], changes: Sequence[str], out: Path | None) -> Job:
    """A recipe's training, or a verb's. Raises RecipeError for anything else."""
    if what in VERBS and not Path(what).exists():
        return verb(what, [*arguments, *_sets(changes), *(["--out", str(out)] if out else [])])
    if what == "train" and arguments and not Path(what).exists():
        what, *arguments = arguments
    if not Path(what).exists():
        raise RecipeError(f"{shown(what)} is no recipe's file, and none of the verbs {', '.join(VERBS)}.")
    if arguments:
        raise RecipeError(
            f"{arguments[0]} is no option of a training; change the recipe with --set KEY=VALUE."
        )
    return training(Path(what), changes, out)


def resumed_digest(job: Job) -> str:
    """Of the recipe as it is now, which is what a resumed job trains."""
    return digest(Path(job.recipe)) if job.recipe and Path(job.recipe).is_file() else ""
