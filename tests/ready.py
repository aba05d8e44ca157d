"""A run that is ready to train."""

from __future__ import annotations

from pathlib import Path

from lora_studio.recipe import Recipe
from lora_studio.run import Run
from lora_studio.training.build import Session, prepare
from lora_studio.training.events import nobody


def prepared(recipe: Recipe, folder: Path) -> Session:
    session = prepare(recipe, Run(folder), nobody)
    session.run.close()
    return session
