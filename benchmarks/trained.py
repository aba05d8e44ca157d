"""A run to its end, once."""

from __future__ import annotations

from pathlib import Path

from lora_studio.recipe import Recipe
from lora_studio.training.finish import Finished
from lora_studio.training.session import train


def trained(recipe: Recipe, folder: Path) -> Path:
    """The LoRA file of a run in the folder, which goes on where it stopped. Raises SystemExit if it stops."""
    if found := sorted(folder.glob("*.safetensors")):
        return found[0]
    result = train(recipe, folder, resume=any(folder.glob("checkpoints/step_*")))
    if not isinstance(result, Finished) or result.lora_file is None:
        raise SystemExit(f"{folder.name}: stopped; the next call goes on.")
    return result.lora_file
