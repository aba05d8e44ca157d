"""Recipe -> adapters in a base, and what of it cannot be, said before anything is encoded."""

from __future__ import annotations

from lora_studio.adapters import ADAPTERS
from lora_studio.adapters.base import AdapterOptions, AdapterSet, choose_layers, inject
from lora_studio.adapters.rules import Rule
from lora_studio.adapters.textual_inversion import TokenOptions, check_tokens, inject_tokens
from lora_studio.errors import RecipeError
from lora_studio.families.base import ModelFamily
from lora_studio.processes import Processes
from lora_studio.quantization import NONE
from lora_studio.recipe import Recipe
from lora_studio.recipe_tokens import NO_ADAPTER
from lora_studio.training.sharded import is_sharded

ALL = "all"


def adapter_options(recipe: Recipe, family: ModelFamily) -> AdapterOptions:
    """As plain values."""
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
        only=family.blocks.get(config.blocks, {}),
    )


def _before(last: int | None, steps: int) -> int | None:
    """None for layers that are trained to the end after all."""
    return None if last is None or last >= steps else last


def adapter_targets(recipe: Recipe, family: ModelFamily) -> dict[str, tuple[str, ...]]:
    """Part -> the endings of the layers that get adapters, but for those that the rules leave out."""
    wide = _has_convolutions(recipe)
    return {
        part: endings + (family.convolutions.get(part, ()) if wide else ())
        for part, endings in family.targets.items()
        if part == family.denoiser or recipe.adapter.text_encoder
    }


def inject_adapters(recipe: Recipe, family: ModelFamily) -> AdapterSet:
    """The adapters that the recipe asks for, in the family's denoiser and, if wanted, its text encoders.

    And its new tokens, in these.
    """
    options, tokens = adapter_options(recipe, family), inject_tokens(family, token_options(recipe))
    if recipe.adapter.kind == NO_ADAPTER:
        return AdapterSet([], options, tokens)
    targets = adapter_targets(recipe, family)
    adapters = inject(family.parts, targets, options, canonical_path=family.canonical_path)
    return AdapterSet(adapters.layers, options, tokens)


def token_options(recipe: Recipe) -> list[TokenOptions]:
    """As plain values."""
    steps = recipe.training.steps
    return [
        TokenOptions(
            one.token,
            one.start,
            one.vectors,
            one.learning_rate,
            _before(one.last_step(steps), steps),
            one.keep_norm,
        )
        for one in recipe.tokens
    ]


def refuse_adapters(recipe: Recipe, family: ModelFamily, processes: Processes) -> None:
    """Raise RecipeError for options of [adapter] and [[tokens]] that do not go together, or not here."""
    faults: list[str] = []
    try:
        check_tokens(family, token_options(recipe))
    except RecipeError as error:
        faults.append(str(error))
    if recipe.adapter.kind != NO_ADAPTER:
        faults += _adapter_faults(recipe, family, processes)
    if faults:
        raise RecipeError("\n".join(faults))


def _adapter_faults(recipe: Recipe, family: ModelFamily, processes: Processes) -> list[str]:
    config, kind = recipe.adapter, ADAPTERS[recipe.adapter.kind]
    faults: list[str] = []
    if config.blocks != ALL and config.blocks not in family.blocks:
        known = ", ".join(map(repr, [ALL, *family.blocks]))
        faults.append(f"adapter.blocks is {config.blocks!r}; for this base it may be {known}.")
    if (config.conv_rank or config.conv_alpha) and not _has_convolutions(recipe):
        faults.append(
            "adapter.conv_rank and adapter.conv_alpha are of convolutions, which are not trained; "
            'set adapter.convolutions = true, or adapter.kind = "locon".'
        )
    if config.lora_plus_ratio != 1 and not kind.faster:
        faults.append(f"adapter.lora_plus_ratio does not go with the kind {config.kind!r}; leave it out.")
    reads = kind.reads_weight or config.start != "default"
    if reads and (recipe.base.quantize != NONE or is_sharded(recipe, processes)):
        faults.append(
            f"adapter.kind = {config.kind!r} with adapter.start = {config.start!r} reads the frozen weights, "
            "which goes neither with base.quantize nor with machine.shard_base; leave one out."
        )
    try:
        options, targets = adapter_options(recipe, family), adapter_targets(recipe, family)
        choose_layers(family.parts, targets, options, canonical_path=family.canonical_path)
    except RecipeError as error:
        faults.append(str(error))
    return faults


def _has_convolutions(recipe: Recipe) -> bool:
    return recipe.adapter.convolutions or ADAPTERS[recipe.adapter.kind].convolutions
