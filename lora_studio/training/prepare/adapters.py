"""Recipe -> which layers and tokens of a base learn: the plan that adapters are made by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from lora_studio.adapters import ADAPTERS
from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.full import Chosen, TensorPlace, exact_values
from lora_studio.adapters.inject import choose_layers, inject_chosen
from lora_studio.adapters.rules import AdapterOptions, Rule
from lora_studio.adapters.textual_inversion import inject_tokens
from lora_studio.families.base import ModelFamily
from lora_studio.recipe import Recipe
from lora_studio.recipe.adapter import NO_ADAPTER, AdapterConfig, TokenConfig
from lora_studio.training.prepare.warm_start import load_initial_weights


@dataclass(frozen=True)
class AdapterPlan:
    """Which layers and tokens of a base learn, with which options and rates: chosen once, by the recipe."""

    options: AdapterOptions
    chosen: Chosen  # nothing if tokens alone learn
    tokens: Sequence[TokenConfig]
    steps: int
    part_rates: Mapping[str, float]  # part -> learning rate of what has none of its own
    lora_plus_ratio: float = 1.0
    init_from: Path | None = None  # a LoRA file

    def snapshot_float32(self, family: ModelFamily) -> dict[TensorPlace, Tensor]:
        """What layers that are trained themselves begin with; to be asked for while the base is float32."""
        trains_layers = self.chosen and ADAPTERS[self.options.kind].trains_layers
        return exact_values(family.parts, self.chosen) if trains_layers else {}

    def inject(
        self, family: ModelFamily, exact: Mapping[TensorPlace, Tensor] = MappingProxyType({})
    ) -> AdapterSet:
        """The adapters, in the family's denoiser and text encoders; new tokens in these.

        `exact`: what was `snapshot_float32`.
        """
        tokens = inject_tokens(family, self.tokens, steps=self.steps)
        if not self.chosen:
            adapters = AdapterSet([], self.options)
        else:
            adapters = inject_chosen(
                family.parts, self.chosen, self.options, canonical_path=family.canonical_path, exact=exact
            )
        if self.init_from is not None:
            adapters.notes = (load_initial_weights(adapters, family, self.init_from),)
        adapters.tokens = tokens
        return adapters


def plan_adapters(recipe: Recipe, family: ModelFamily) -> AdapterPlan:
    """Choose what learns. Raises RecipeError for options that do not go with the kind or this base."""
    training, options, chosen = recipe.training, _options(recipe, family), Chosen()
    if recipe.adapter.kind != NO_ADAPTER:
        chosen = choose_layers(
            family.parts, _targets(recipe, family), options, canonical_path=family.canonical_path
        )
    rates = {part: training.text_encoder_learning_rate for part in family.parts}
    return AdapterPlan(
        options,
        chosen,
        recipe.tokens,
        training.steps,
        rates | {family.denoiser: training.learning_rate},
        recipe.adapter.lora_plus_ratio,
        recipe.adapter.init_from,
    )


def _options(recipe: Recipe, family: ModelFamily) -> AdapterOptions:
    config, steps = recipe.adapter, recipe.training.steps
    rules = [
        Rule(
            one.pattern,
            one.rank,
            one.alpha,
            one.learning_rate,
            _before(one.last_step(steps), steps),
            one.train,
        )
        for one in config.layers
    ]
    return AdapterOptions(
        config.kind,
        config.rank,
        config.alpha,
        recipe.training.seed,
        conv_rank=config.conv_rank,
        conv_alpha=config.conv_alpha,
        scaling="sqrt_rank" if config.rslora else "rank",
        start=config.start,
        rank_dropout=config.rank_dropout,
        module_dropout=config.module_dropout,
        max_norm=config.max_norm,
        rules=rules,
        only=family.block_choices.get(config.blocks, {}),
        keep_base_on_device=max(recipe.objective.preservation, recipe.objective.masked_preservation) > 0,
    )


def _before(last: int | None, steps: int) -> int | None:
    """0 for what is trained to the end after all."""
    return last if last is None or last < steps else 0


def _targets(recipe: Recipe, family: ModelFamily) -> dict[str, tuple[str, ...]]:
    """Part -> the endings of the layers that learn, but for those that the rules leave out."""
    parts = [part for part in family.targets if part == family.denoiser or recipe.adapter.text_encoder]
    if ADAPTERS[recipe.adapter.kind].trains_layers:
        return {part: family.own_layers(part) for part in parts}
    wide = has_convolutions(recipe.adapter)
    return {
        part: family.targets[part] + (family.convolutions.get(part, ()) if wide else ()) for part in parts
    }


def has_convolutions(config: AdapterConfig) -> bool:
    """Whether some are trained."""
    return config.conv or ADAPTERS[config.kind].convolutions
