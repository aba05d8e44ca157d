"""The recipe's validation images -> what measures the loss on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_studio.data.cache.latents import Latent
from lora_studio.data.conditioning import ConditioningCache
from lora_studio.data.feed import geometry
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.views import as_shown, views_of
from lora_studio.evaluate.validation import HeldOut, Validation
from lora_studio.families.base import ModelFamily
from lora_studio.objectives.diffusion import Objective
from lora_studio.recipe import Recipe
from lora_studio.training.prepare.captions import captions_of
from lora_studio.training.prepare.dataset import loss_masks


def held_views(recipe: Recipe, manifest: Manifest) -> list[Record]:
    """The validation images, each in its first view only; none if nothing shall be measured."""
    held = [] if recipe.validation.off else manifest.of_role("validation")
    return [as_shown(record, views_of(record)[0]) for record in held]


def held_captions(recipe: Recipe, held: Sequence[Record]) -> list[str]:
    """What each is shown with: never dropped, with its trigger, always the same if captions vary."""
    captions = captions_of(recipe, held)
    return [captions.variant(index, 0) for index in range(len(held))]


def make_validation(
    recipe: Recipe,
    held: Sequence[Record],
    latents: Sequence[Latent],
    texts: ConditioningCache | None,
    family: ModelFamily,
    objective: Objective,
    *,
    autocast: torch.dtype | None,
) -> Validation | None:
    """None if there is nothing to measure."""
    if not held:
        return None
    device = family.device
    masks = [torch.ones(1, 1) if mask is None else mask.inside for mask in loss_masks(held, latents)]
    images = [
        HeldOut(
            name=record.name,
            sha256=record.sha256,
            caption=caption,
            latents=latent.mean.to(device),
            geometry=torch.tensor(geometry(record), device=device),
            weight=mask.to(device),
        )
        for record, caption, latent, mask in zip(
            held, held_captions(recipe, held), latents, masks, strict=True
        )
    ]
    rows = recipe.training.batch_size
    return Validation(images, texts, family, objective, autocast=autocast, rows_at_once=rows)
