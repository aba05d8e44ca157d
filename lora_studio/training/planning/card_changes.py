"""What to change in a recipe that does not fit on a card: one thing after the other, each simulated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from lora_studio.lora_file.write import DTYPES
from lora_studio.quantization import NONE
from lora_studio.recipe import Recipe
from lora_studio.training.planning import lower_side, stays_whole
from lora_studio.training.planning.simulation import (
    ENCODING_IMAGES,
    PREVIEWS,
    TRAINING,
    Simulation,
    simulate,
)
from lora_studio.training.planning.simulation.images import shapes_of
from lora_studio.training.planning.simulation.session import base_without_weights


@dataclass(frozen=True)
class CardChange:
    """A change of the recipe, beside those before it, and the fullest moment with all of them."""

    change: str  # in the words of --set
    cost: str
    phase: str
    peak: int
    fits: bool


class _Candidate(NamedTuple):
    options: dict[str, dict[str, Any]]  # section -> options
    cost: str

    @property
    def words(self) -> str:
        """As --set and a recipe have it."""
        sections = self.options.items()
        return ", ".join(
            f"{of}.{key} = {json.dumps(v)}" for of, values in sections for key, v in values.items()
        )

    def applied(self, recipe: Recipe) -> Recipe:
        sections = self.options.items()
        return recipe.model_copy(
            update={of: getattr(recipe, of).model_copy(update=values) for of, values in sections}
        )


def changes_until_it_fits(
    recipe: Recipe, dtype: torch.dtype, found: Simulation, usable: int
) -> Iterator[CardChange]:
    """One after the other, each for the fullest phase then, until all fit or nothing is left to try."""
    tried: set[str] = set()
    while (full := found.fullest).peak > usable:
        left = (one for one in _candidates(recipe, full.name) if one.words not in tried)
        if (candidate := next(left, None)) is None:
            return
        tried.add(candidate.words)
        changed = candidate.applied(recipe)
        family = base_without_weights(changed)
        shapes = shapes_of(changed, family)
        after = simulate(changed, family, base_dtype(changed, dtype), shapes, usable=usable)
        if after.fullest.peak < full.peak:
            recipe, found, full = changed, after, after.fullest
            yield CardChange(candidate.words, candidate.cost, full.name, full.peak, full.peak <= usable)


def _candidates(recipe: Recipe, phase: str) -> Iterator[_Candidate]:
    """What makes a phase smaller, the harmless first."""
    training, side = recipe.training, recipe.data.resolution
    if phase == TRAINING and not recipe.machine.gradient_checkpointing:
        cost = "the same result; steps take about a third longer"
        yield _Candidate({"machine": {"gradient_checkpointing": True}}, cost)
    if phase == ENCODING_IMAGES and recipe.base.vae_dtype == "float32":
        yield _Candidate({"base": {"vae_dtype": "bfloat16"}}, "latents are a little less exact")
    if phase == TRAINING and training.batch_size > 1:
        micro_batches = training.batch_size * training.gradient_accumulation
        options = {"batch_size": 1, "gradient_accumulation": micro_batches}
        yield _Candidate({"training": options}, "as many images a step, which takes longer")
    if recipe.base.dtype == "float32":
        yield _Candidate({"base": {"dtype": "auto"}}, "the base is a little less exact")
    if recipe.base.quantize == NONE and stays_whole(recipe):
        cost = "the base is less exact, and steps take longer; needs bitsandbytes"
        yield _Candidate({"base": {"quantize": "bnb_nf4"}}, cost)
    if training.optimizer == "adamw":
        yield _Candidate({"training": {"optimizer": "adamw8bit"}}, "moments in 8 bits; needs bitsandbytes")
    if phase == PREVIEWS:
        yield _Candidate({"samples": {"prompts": ()}}, "no previews; draw them elsewhere")
    if recipe.machine.offload_blocks != "auto" and stays_whole(recipe):
        cost = "the same result; steps may wait for weights from main memory"
        yield _Candidate({"machine": {"offload_blocks": "auto"}}, cost)
    if (lower := lower_side(side)) is not None:
        yield _Candidate({"data": {"resolution": lower}}, "details are learned less well")


def base_dtype(recipe: Recipe, usual: torch.dtype) -> torch.dtype:
    """The recipe's, or with "auto" what is usual on a card."""
    return usual if recipe.base.dtype == "auto" else DTYPES[recipe.base.dtype]
