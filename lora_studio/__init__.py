"""LoRA Studio: a folder of images becomes a verified LoRA file."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from lora_studio.quiet import paused_collector
from lora_studio.version import __version__

if TYPE_CHECKING:
    from lora_studio.errors import Interrupted
    from lora_studio.recipe import Recipe
    from lora_studio.recipe.load import load_recipe
    from lora_studio.training.finish import Finished
    from lora_studio.training.planning import RunPlan, plan
    from lora_studio.training.planning.for_card import CardPlan, plan_for
    from lora_studio.training.session import train

__all__ = [
    "CardPlan",
    "Finished",
    "Interrupted",
    "Recipe",
    "RunPlan",
    "__version__",
    "load_recipe",
    "plan",
    "plan_for",
    "train",
]

_MODULES = {
    "Finished": "lora_studio.training.finish",
    "Interrupted": "lora_studio.errors",
    "Recipe": "lora_studio.recipe",
    "load_recipe": "lora_studio.recipe.load",
    "RunPlan": "lora_studio.training.planning",
    "plan": "lora_studio.training.planning",
    "CardPlan": "lora_studio.training.planning.for_card",
    "plan_for": "lora_studio.training.planning.for_card",
    "train": "lora_studio.training.session",
}


def __getattr__(name: str) -> object:
    """The public names, imported when they are asked for: torch takes seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with paused_collector():
        return getattr(import_module(_MODULES[name]), name)
