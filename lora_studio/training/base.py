"""The recipe's base."""

from __future__ import annotations

from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.families.single_file import SingleFileOptions
from lora_studio.recipe import Recipe


def base_of(recipe: Recipe, *, weights: bool = True) -> ModelFamily:
    """The frozen base that the recipe names, with its VAE. Raises BaseModelError as load_base."""
    base = recipe.base
    tokenizer = base.tokenizer.expanduser() if base.tokenizer else None
    options = SingleFileOptions(base.prediction_type, tokenizer, base.allow_pickle)
    return load_base(
        base.model, vae=base.vae, prediction=base.prediction_type, weights=weights, single_file=options
    )
