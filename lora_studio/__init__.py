"""LoRA Studio: a folder of images becomes a verified LoRA file."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_studio.recipe import Recipe, load_recipe
    from lora_studio.training.session import Finished, Interrupted, train

__version__ = "0.1.0"
__all__ = ["Finished", "Interrupted", "Recipe", "__version__", "load_recipe", "train"]

_MODULES = {
    "Finished": "lora_studio.training.session",
    "Interrupted": "lora_studio.training.session",
    "Recipe": "lora_studio.recipe",
    "load_recipe": "lora_studio.recipe",
    "train": "lora_studio.training.session",
}


def __getattr__(name: str) -> object:
    """The public names, imported when they are asked for: torch takes seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
