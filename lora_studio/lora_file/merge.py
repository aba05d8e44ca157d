"""LoRA files merged into a loaded base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_studio.errors import RecipeError
from lora_studio.families.base import ModelFamily
from lora_studio.lora_file.lora_file import base_layers
from lora_studio.lora_file.open import read_plain, unfit_layers, unknown_layers


@dataclass(frozen=True)
class Merged:
    """A file to be merged into a base, and how strongly."""

    file: Path
    strength: float


def merge_plain(family: ModelFamily, wanted: Sequence[Merged]) -> tuple[str, ...]:
    """Add the files' changes to the float32 weights of a base; what was done, in sentences.

    Raises RecipeError for a file that is not plain LoRA of this base.
    """
    layers, said = base_layers(family), []
    for number, one in enumerate(wanted):
        option = f"base.loras[{number}].file"
        file = read_plain(one.file, option)
        faults = unknown_layers(file, layers, option) or unfit_layers(
            file, {name: layer.weight.shape for name, layer in layers.items()}, option
        )
        if faults:
            raise RecipeError("\n".join(faults))
        changed = 0
        for name in file.layers:
            weight, delta = layers[name].weight, file.delta(name)
            changed += bool(delta.any())
            if not weight.is_meta:
                weight.data.add_(delta.view(weight.shape).to(weight), alpha=one.strength)
        said.append(
            f"{one.file.name} is merged into it with a strength of {one.strength:g}: {changed} layers are "
            "changed, and what is trained needs it to be there"
        )
    return tuple(said)
