"""A run that is ready to train."""

from __future__ import annotations

from pathlib import Path

from lora_studio.recipe import Recipe
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.prepare import Session, prepare


def prepared(recipe: Recipe, folder: Path) -> Session:
    session = prepare(recipe, Run(folder), ignore_events)
    session.run.close()
    return session
