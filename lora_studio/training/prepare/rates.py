"""The learning rates that a recipe's tensors are trained with, by the options that say them."""

from __future__ import annotations

from lora_studio.adapters import ADAPTERS
from lora_studio.adapters.full_inject import choose_tensors
from lora_studio.adapters.inject import choose_layers
from lora_studio.errors import RecipeError
from lora_studio.families.base import ModelFamily
from lora_studio.recipe import Recipe
from lora_studio.recipe.tokens import NO_ADAPTER
from lora_studio.training.optimizers import NEEDS, Needs
from lora_studio.training.prepare.adapters import adapter_options, adapter_targets, trains_layers


def refuse_rates(recipe: Recipe, family: ModelFamily) -> None:
    """Raise RecipeError for learning rates that the optimizer cannot take, before anything is encoded."""
    name = recipe.training.optimizer
    least = NEEDS.get(name, Needs()).least_rate
    if not least:
        return
    rates = used_rates(recipe, family)
    said = [f"{option} is {rate:g}" for option, rate in rates.items()]
    if len(set(rates.values())) > 1:
        raise RecipeError(
            f"training.optimizer = {name!r} finds one rate for everything that is trained, but it is given "
            f"several factors on it: {', '.join(said)}; set each of these options to 1."
        )
    if min(rates.values()) < least:
        raise RecipeError(
            f"{' and '.join(said)}, but {name!r} finds its own rate and takes this as a factor on it: "
            f"set it to 1, and not below {least:g}."
        )


def used_rates(recipe: Recipe, family: ModelFamily) -> dict[str, float]:
    """Option -> learning rate, of all that will be trained and of nothing else; before there are adapters.

    Raises RecipeError for layers that cannot be chosen as the recipe wants.
    """
    found = _layer_rates(recipe, family) if recipe.adapter.kind != NO_ADAPTER else {}
    return found | {f"tokens.learning_rate of {one.token!r}": one.learning_rate for one in recipe.tokens}


def _layer_rates(recipe: Recipe, family: ModelFamily) -> dict[str, float]:
    training, config, found = recipe.training, recipe.adapter, dict[str, float]()
    for part, own in _own_rates(recipe, family):
        if own is not None:
            by = next(rule.pattern for rule in reversed(config.layers) if rule.learning_rate == own)
            found[f"adapter.layers.learning_rate of {by!r}"] = own
        elif part == family.denoiser:
            found["training.learning_rate"] = training.learning_rate
        else:
            found["training.text_encoder_learning_rate"] = training.text_encoder_learning_rate
    if config.lora_plus_ratio == 1 or not ADAPTERS[config.kind].faster:
        return found
    faster = {
        f"{option} times adapter.lora_plus_ratio": rate * config.lora_plus_ratio
        for option, rate in found.items()
    }
    return found | faster


def _own_rates(recipe: Recipe, family: ModelFamily) -> list[tuple[str, float | None]]:
    """Of everything that is trained its part, and the learning rate that [[adapter.layers]] has for it."""
    options, targets = adapter_options(recipe, family), adapter_targets(recipe, family)
    if trains_layers(recipe):
        tensors = choose_tensors(family.parts, targets, options, canonical_path=family.canonical_path)
        return [(place.part, one.learning_rate) for place, one in tensors.items()]
    layers = choose_layers(family.parts, targets, options, canonical_path=family.canonical_path)
    return [(part, one.learning_rate) for (part, _), one in layers.items()]
