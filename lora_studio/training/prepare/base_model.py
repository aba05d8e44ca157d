"""The recipe's base."""

from __future__ import annotations

from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.families.loading.single_file import SingleFileOptions
from lora_studio.lora_file.fit import Merged, merge_plain
from lora_studio.recipe import Recipe


def base_of(recipe: Recipe, *, weights: bool = True) -> ModelFamily:
    """The frozen base that the recipe names, with its VAE, and with the LoRAs that are to be part of it.

    Raises BaseModelError as load_base, and RecipeError for a LoRA that cannot be merged.
    """
    base = recipe.base
    options = SingleFileOptions(base.prediction_type, base.tokenizer, base.allow_pickle)
    family = load_base(
        base.model, vae=base.vae, prediction=base.prediction_type, weights=weights, single_file=options
    )
    family.notes += merge_plain(family, [Merged(one.file, one.strength) for one in base.loras])
    return family
