"""The base that a recipe names, and what everything around it is made ready with."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from lora_studio.data.cache.encode import LatentCache, TextCache
from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.families.loading.single_file import SingleFileOptions
from lora_studio.files import cache_folder
from lora_studio.lora_file.open import Merged, merge_plain
from lora_studio.lora_file.write import DTYPES
from lora_studio.processes import Processes
from lora_studio.recipe import Recipe
from lora_studio.runs import Run
from lora_studio.training.events import Listener
from lora_studio.training.machine import Machine
from lora_studio.training.prepare.adapters import AdapterPlan

BATCH_PIXELS = 2**20  # on a GPU: four images of 512x512 at a time, or one of 1024x1024


def base_of(recipe: Recipe, *, weights: bool = True) -> ModelFamily:
    """The frozen base that the recipe names, with its VAE, and with the LoRAs that are to be part of it.

    Raises BaseModelError as load_base, and RecipeError for a LoRA that cannot be merged.
    """
    base, prediction = recipe.base, recipe.base.prediction_type
    options = SingleFileOptions(prediction, base.tokenizer, base.allow_pickle)
    family = load_base(base.model, vae=base.vae, prediction=prediction, weights=weights, single_file=options)
    family.notes += merge_plain(family, [Merged(one.file, one.strength) for one in base.loras])
    return family


@dataclass
class BuildContext:
    """What makes a run ready; made while the base is as it was loaded, as caches are named after it."""

    recipe: Recipe
    run: Run
    machine: Machine
    family: ModelFamily
    adapters: AdapterPlan
    listener: Listener
    processes: Processes
    latent_cache: LatentCache = field(init=False)
    text_cache: TextCache = field(init=False)
    whole_base: str = field(init=False)  # its fingerprint, if regularization images are drawn with it

    def __post_init__(self) -> None:
        family, draws = self.family, self.recipe.data.regularization_images.count
        precision = "" if self.vae_dtype == torch.float32 else f" in {self.vae_dtype}"
        vae_key = family.fingerprint("vae") + precision
        at_once = 0 if self.machine.device.type == "cpu" else BATCH_PIXELS
        self.latent_cache = LatentCache(cache_folder() / "latents", vae_key, batch_pixels=at_once)
        text_key = f"{family.text_fingerprint()} in {self.machine.dtype}"  # what the encoders compute in
        self.text_cache = TextCache(cache_folder() / "text", text_key)
        self.whole_base = family.drawing_fingerprint() if draws else ""

    @property
    def vae_dtype(self) -> torch.dtype:
        return DTYPES[self.recipe.base.vae_dtype]
