"""Recipe -> adapters in a base, and what of it cannot be, said before anything is encoded."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from lora_studio.adapters import ADAPTERS
from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.full_inject import TensorPlace, choose_tensors, exact_values
from lora_studio.adapters.inject import choose_layers, inject
from lora_studio.adapters.rules import AdapterOptions, Rule
from lora_studio.adapters.textual_inversion import TokenOptions, check_tokens, inject_tokens
from lora_studio.errors import RecipeError
from lora_studio.families.base import ModelFamily
from lora_studio.processes import Processes
from lora_studio.quantization import NONE
from lora_studio.recipe import Recipe
from lora_studio.recipe.adapter import AdapterConfig
from lora_studio.recipe.tokens import NO_ADAPTER
from lora_studio.training.machine.sharded import is_sharded
from lora_studio.training.prepare.warm_start import load_initial_weights, start_faults

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
        only=family.block_choices.get(config.blocks, {}),
        keep_base_on_device=max(recipe.objective.preservation, recipe.objective.masked_preservation) > 0,
    )


def _before(last: int | None, steps: int) -> int | None:
    """0 for what is trained to the end after all."""
    return last if last is None or last < steps else 0


def adapter_targets(recipe: Recipe, family: ModelFamily) -> dict[str, tuple[str, ...]]:
    """Part -> the endings of the layers that get adapters, but for those that the rules leave out."""
    wide = _has_convolutions(recipe)
    if trains_layers(recipe):
        return {
            part: family.own_layers(part)
            for part in family.targets
            if part == family.denoiser or recipe.adapter.text_encoder
        }
    return {
        part: endings + (family.convolutions.get(part, ()) if wide else ())
        for part, endings in family.targets.items()
        if part == family.denoiser or recipe.adapter.text_encoder
    }


def trains_layers(recipe: Recipe) -> bool:
    """Whether the base's own layers are trained."""
    return recipe.adapter.kind != NO_ADAPTER and ADAPTERS[recipe.adapter.kind].trains_layers


def snapshot_float32(recipe: Recipe, family: ModelFamily) -> dict[TensorPlace, Tensor]:
    """What layers that are trained themselves begin with; to be asked for while the base is float32."""
    if not trains_layers(recipe):
        return {}
    options, targets = adapter_options(recipe, family), adapter_targets(recipe, family)
    chosen = choose_tensors(family.parts, targets, options, canonical_path=family.canonical_path)
    return exact_values(family.parts, chosen)


def inject_adapters(
    recipe: Recipe, family: ModelFamily, exact: Mapping[TensorPlace, Tensor] = MappingProxyType({})
) -> AdapterSet:
    """The adapters that the recipe asks for, in the family's denoiser and, if wanted, its text encoders.

    And its new tokens, in these. `exact`: what was `snapshot_float32`.
    """
    options, tokens = adapter_options(recipe, family), inject_tokens(family, token_options(recipe))
    if recipe.adapter.kind == NO_ADAPTER:
        adapters = AdapterSet([], options)
    else:
        targets = adapter_targets(recipe, family)
        adapters = inject(family.parts, targets, options, canonical_path=family.canonical_path, exact=exact)
    if recipe.adapter.init_from is not None:
        adapters.notes = (load_initial_weights(adapters, family, recipe.adapter.init_from),)
    adapters.tokens = tokens
    return adapters


def token_options(recipe: Recipe) -> list[TokenOptions]:
    """As plain values."""
    steps = recipe.training.steps
    return [
        TokenOptions(
            one.token,
            one.start,
            one.vectors,
            one.learning_rate,
            _before(one.last_step(steps), steps) or None,
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
    faults = _meaningless(config)
    if kind.trains_layers and recipe.tokens:
        faults.append(
            f"adapter.kind = {config.kind!r} ends as a whole base, which [[tokens]] are no part of; leave "
            "them out, or take a kind that ends as a LoRA file."
        )
    if config.blocks != ALL and config.blocks not in family.block_choices:
        known = ", ".join(map(repr, [ALL, *family.block_choices]))
        faults.append(f"adapter.blocks is {config.blocks!r}; for this base it may be {known}.")
    if (config.conv_rank or config.conv_alpha) and not _has_convolutions(recipe):
        faults.append(
            "adapter.conv_rank and adapter.conv_alpha are of convolutions, which are not trained; "
            'set adapter.conv = true, or adapter.kind = "locon".'
        )
    if config.lora_plus_ratio != 1 and not kind.faster and "lora_plus_ratio" not in kind.unused:
        faults.append(f"adapter.lora_plus_ratio does not go with the kind {config.kind!r}; leave it out.")
    reads = kind.reads_weight or config.start != "default"
    if kind.trains_layers and (recipe.base.quantize != NONE or is_sharded(recipe, processes)):
        faults.append(
            f"adapter.kind = {config.kind!r} trains the base's own weights, so they can be neither in fewer "
            "bits nor spread over processes; leave base.quantize and machine.shard_base out, or take "
            'adapter.kind = "lora".'
        )
    elif reads and (recipe.base.quantize != NONE or is_sharded(recipe, processes)):
        faults.append(
            f"adapter.kind = {config.kind!r} with adapter.start = {config.start!r} reads the frozen weights, "
            "which goes neither with base.quantize nor with machine.shard_base; leave one out."
        )
    try:
        options, targets = adapter_options(recipe, family), adapter_targets(recipe, family)
        places = choose_layers(family.parts, targets, options, canonical_path=family.canonical_path)
        if config.init_from is not None:
            faults += start_faults(config, family, places)
    except RecipeError as error:
        faults.append(str(error))
    return faults


def _meaningless(config: AdapterConfig) -> list[str]:
    """What was given though it means nothing to the kind."""
    unused, given = ADAPTERS[config.kind].unused, config.model_fields_set
    names = [f"adapter.{name}" for name in AdapterConfig.model_fields if name in unused & given]
    for name in ("rank", "alpha"):
        if name in unused and any(getattr(layer, name) is not None for layer in config.layers):
            names.append(f"the {name} of an [[adapter.layers]]")
    if not names:
        return []
    return [
        f"adapter.kind = {config.kind!r} has no use for {', '.join(names)}: the layers' own tensors are "
        "trained, whole; take that out."
    ]


def _has_convolutions(recipe: Recipe) -> bool:
    return recipe.adapter.conv or ADAPTERS[recipe.adapter.kind].convolutions
