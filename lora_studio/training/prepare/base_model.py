"""The base that a recipe names, which layers and tokens of it learn, and what a run is made ready with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from lora_studio.adapters import ADAPTERS
from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.full import Chosen, TensorPlace, exact_values
from lora_studio.adapters.inject import choose_layers, inject_chosen
from lora_studio.adapters.layer import shape_of
from lora_studio.adapters.rules import AdapterOptions, LayerOptions
from lora_studio.adapters.textual_inversion import inject_tokens
from lora_studio.adapters.training_adapter import LinearFactors, TrainingAdapter
from lora_studio.data.cache.encode import LatentCache, TextCache
from lora_studio.errors import RecipeError, preview_names
from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.families.loading.single_file import SingleFileOptions
from lora_studio.files import cache_folder
from lora_studio.lora_file.lora_file import base_layers
from lora_studio.lora_file.open import Merged, merge_plain, read_plain, unfit_layers, unknown_layers
from lora_studio.lora_file.write import DTYPES
from lora_studio.objectives.base import Objective, ObjectiveOptions
from lora_studio.processes import Processes
from lora_studio.recipe import Recipe
from lora_studio.recipe.adapter import NO_ADAPTER, AdapterConfig, TokenConfig
from lora_studio.recipe.base import BaseConfig
from lora_studio.runs import Run
from lora_studio.text import plural
from lora_studio.training.events import Listener
from lora_studio.training.machine import Machine

INIT_FROM, TRAINING_ADAPTER = "adapter.init_from", "base.training_adapter"
BATCH_PIXELS = 2**20  # on a GPU: four images of 512x512 at a time, or one of 1024x1024


def base_of(
    recipe: Recipe, *, weights: bool = True, dtype: torch.dtype = torch.float32, staged: bool = False
) -> ModelFamily:
    """The frozen base that the recipe names, with its VAE, and with the LoRAs that are to be part of it.

    In `dtype`, but for the VAE, which is float32; `staged` as for `load_base`.
    Raises BaseModelError as load_base, and RecipeError for a LoRA that cannot be merged.
    """
    base, prediction = recipe.base, recipe.base.prediction_type
    options = file_options(base)
    family = load_base(
        base.model,
        vae=base.vae,
        prediction=prediction,
        weights=weights,
        single_file=options,
        dtype=dtype,
        staged=staged,
    )
    family.notes += merge_plain(family, [Merged(one.file, one.strength) for one in base.loras])
    family.notes += tuple(_notes_on_distilled(recipe, family))
    return family


def _notes_on_distilled(recipe: Recipe, family: ModelFamily) -> Iterator[str]:
    if (path := recipe.base.training_adapter) is not None:
        yield f"{path.name} is beside it while it learns, and neither in previews nor in the finished file"
    elif family.distilled and recipe.adapter.kind != NO_ADAPTER:
        yield (
            "warning: it is distilled to a few steps, and training it as it is blurs its images within some "
            "hundred steps: name a LoRA that undoes this meanwhile in base.training_adapter, or train on the "
            f"base that it was distilled from{family.undistilled and f' ({family.undistilled})'}"
        )


def file_options(base: BaseConfig) -> SingleFileOptions:
    """What a recipe says of a base that is one file."""
    distilled = None if base.distilled == "auto" else base.distilled
    return SingleFileOptions(
        base.prediction_type, base.tokenizer, base.allow_pickle, base.text_encoder, base.vae, distilled
    )


def bare_base_of(recipe: Recipe) -> ModelFamily:
    """Shapes and tokenizers of the base that the recipe names: no weight is read, nothing merged."""
    plain = recipe.base.model_copy(update={"loras": ()})
    return base_of(recipe.model_copy(update={"base": plain}), weights=False)


def objective_of(recipe: Recipe, family: ModelFamily) -> Objective:
    """What is learned of a noised image. Raises RecipeError for options that mean nothing for this base."""
    options = recipe.objective.model_dump(exclude={"preservation", "masked_preservation"})  # of the feed
    return family.objective(ObjectiveOptions(**options))


@dataclass(frozen=True)
class AdapterPlan:
    """Which layers and tokens of a base learn, with which options and rates: chosen once, by the recipe."""

    options: AdapterOptions
    chosen: Chosen  # nothing if tokens alone learn
    tokens: Sequence[TokenConfig]
    steps: int
    part_rates: Mapping[str, float]  # part -> learning rate of what has none of its own
    init_from: Path | None  # a LoRA file
    # Path in the denoiser -> a training adapter's.
    beside: Mapping[str, LinearFactors] = field(default_factory=dict)

    def snapshot_float32(self, family: ModelFamily) -> dict[TensorPlace, Tensor]:
        """What layers that are trained themselves begin with, of which the base may have lost digits."""
        trains_layers = self.chosen and ADAPTERS[self.options.kind].trains_layers
        return exact_values(family.exact, self.chosen) if trains_layers else {}

    def attach_training_adapter(self, family: ModelFamily, dtype: torch.dtype) -> TrainingAdapter:
        """To the denoiser with its adapters in it; nothing is beside it without a file."""
        made = TrainingAdapter()
        if self.beside:
            made.attach(family.parts[family.denoiser], self.beside, dtype)
        return made

    def inject(
        self, family: ModelFamily, exact: Mapping[TensorPlace, Tensor] = MappingProxyType({})
    ) -> AdapterSet:
        """The adapters, in the family's denoiser and text encoders; `exact`: what was `snapshot_float32`."""
        tokens, adapters = inject_tokens(family, self.tokens, steps=self.steps), AdapterSet([], self.options)
        if self.chosen:
            canonical, options = family.canonical_path, self.options
            adapters = inject_chosen(
                family.parts,
                self.chosen,
                options,
                canonical_path=canonical,
                exact=exact,
                together=family.together,
            )
        if self.init_from is not None:
            adapters.notes = (load_initial_weights(adapters, family, self.init_from),)
        adapters.tokens = tokens
        return adapters


def training_adapter_factors(path: Path, family: ModelFamily) -> dict[str, LinearFactors]:
    """Path in the denoiser -> factors. Raises RecipeError for what is no plain LoRA of its linear layers."""
    file, layers = read_plain(path, TRAINING_ADAPTER), base_layers(family)
    shapes = {name: shape_of(layer) for name, layer in layers.items()}
    if fault := unknown_layers(file, layers) or unfit_layers(file, shapes):
        raise RecipeError(f"{TRAINING_ADAPTER}: {fault}")
    paths = {module: path for path, module in family.parts[family.denoiser].named_modules()}
    if other := [name for name in file.layers if layers[name] not in paths or len(shapes[name]) > 2]:
        raise RecipeError(
            f"{TRAINING_ADAPTER}: {file.path.name} changes {plural(len(other), 'layer')} beside the linear "
            f"ones of the denoiser, {preview_names(other)}; give one that changes these alone."
        )
    found = {}
    for name, layer in file.layers.items():
        down, up = (layer.tensors[f"lora_{end}.weight"].float().flatten(1) for end in ("down", "up"))
        found[paths[layers[name]]] = LinearFactors(down, up * layer.scale)
    return found


def plan_adapters(recipe: Recipe, family: ModelFamily) -> AdapterPlan:
    """Choose what learns. Raises RecipeError for options that do not go with the kind or this base."""
    training, options, chosen = recipe.training, _options(recipe, family), Chosen()
    if recipe.adapter.kind != NO_ADAPTER:
        targets, canonical = _targets(recipe, family), family.canonical_path
        chosen = choose_layers(family.parts, targets, options, canonical_path=canonical)
    rates = dict.fromkeys(family.parts, training.text_encoder_learning_rate)
    rates[family.denoiser] = training.learning_rate
    path, beside = recipe.base.training_adapter, dict[str, LinearFactors]()
    if path is not None:
        beside = training_adapter_factors(path, family)
    begun = recipe.adapter.init_from
    return AdapterPlan(options, chosen, recipe.tokens, training.steps, rates, begun, beside)


def _options(recipe: Recipe, family: ModelFamily) -> AdapterOptions:
    config = recipe.adapter
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
        rules=config.layers,
        steps=recipe.training.steps,
        only=family.block_choices.get(config.blocks, {}),
        keep_base_on_device=max(recipe.objective.preservation, recipe.objective.masked_preservation) > 0,
    )


def _targets(recipe: Recipe, family: ModelFamily) -> dict[str, tuple[str, ...]]:
    """Part -> the endings of the layers that learn, but for those that the rules leave out."""
    parts = [part for part in family.targets if part == family.denoiser or recipe.adapter.text_encoder]
    if ADAPTERS[recipe.adapter.kind].trains_layers:
        return {part: family.own_layers(part) for part in parts}
    wide = family.convolutions if has_convolutions(recipe.adapter) else {}
    return {part: family.targets[part] + wide.get(part, ()) for part in parts}


def has_convolutions(config: AdapterConfig) -> bool:
    return config.conv or ADAPTERS[config.kind].convolutions


def start_faults(
    config: AdapterConfig, family: ModelFamily, places: Mapping[tuple[str, str], LayerOptions]
) -> Iterator[str]:
    """Why the adapters that go into these places cannot begin as the recipe's file; nothing if they can."""
    assert config.init_from is not None
    kind = ADAPTERS[config.kind]
    if kind.trains_layers:
        yield (
            f"{INIT_FROM} is of LoRA files, and adapter.kind = {config.kind!r} begins as its base is: name "
            "the folder of an earlier full run as base.model, or a LoRA file in [[base.loras]]."
        )
        return
    if not kind.begins_as_lora or config.start != "default":
        yield (
            f"{INIT_FROM} does not go with adapter.kind = {config.kind!r} and adapter.start = "
            f"{config.start!r}; a LoRA file can be what lora and locon begin with, with their default start."
        )
        return
    file, base = read_plain(config.init_from, INIT_FROM), base_layers(family)
    shapes = {name: shape_of(layer) for name, layer in base.items()}
    faults = (unknown_layers(file, base), unfit_layers(file, shapes))
    yield from (f"{INIT_FROM}: {fault}" for fault in faults if fault)
    canonical = family.canonical_path
    ranks = {family.ui_name(part, canonical(part, path)): one.rank for (part, path), one in places.items()}
    untrained = [name for name in file.layers if name in base and name not in ranks]
    # layers that UIs look for, and that were not trained, are in files as zero
    if lost := [name for name in untrained if file.layers[name].state != "zero"]:
        yield (
            f"{INIT_FROM}: {file.path.name} changes {len(lost)} layers that this recipe does not train, "
            f"{preview_names(lost)}; train them, too (adapter.text_encoder, adapter.kind = 'locon', "
            "adapter.layers), or merge the file into the base with [[base.loras]]."
        )
    larger = {name: rank for name, rank in file.ranks.items() if name in ranks and rank > ranks[name]}
    if larger:
        most, name = max(larger.values()), next(iter(larger))
        yield (
            f"{INIT_FROM}: {name} has rank {larger[name]} in {file.path.name}, but {ranks[name]} in the "
            f"recipe, as have {len(larger)} layers in all; set adapter.rank = {most} or more."
        )


def load_initial_weights(adapters: AdapterSet, family: ModelFamily, path: Path) -> str:
    """Give adapters without `start_faults` the file's numbers, whose change is then theirs; say so.

    Ranks that the file does not have keep their random `down`, and an `up` of zero.
    """
    file, begun = read_plain(path, INIT_FROM), 0
    for layer in adapters.layers:
        name = family.ui_name(layer.part, layer.path)
        if name not in file.layers:
            continue
        found, (down, up) = file.layers[name], (layer.tensors["down"], layer.tensors["up"])
        rank, tensors, share = file.ranks[name], found.tensors, found.scale / layer.scale
        with torch.no_grad():
            if not down.is_meta:
                down[:rank] = tensors["lora_down.weight"].float().view(rank, *down.shape[1:]).to(down)
                above = tensors["lora_up.weight"].float().view(len(up), rank, *up.shape[2:])
                up[:, :rank] = (above * share).to(up)
        begun += 1
    others = len(adapters.layers) - begun
    fresh = f", the other {others} as ever" if others else ""
    return f"{begun} layers begin as {path.name} has them{fresh}; it is a new run from its first step"


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
    resumes: bool = False  # the run goes on from its checkpoint
    latent_cache: LatentCache = field(init=False)
    text_cache: TextCache = field(init=False)
    whole_base: str = field(init=False)  # its fingerprint, if images are drawn that are kept for others

    def __post_init__(self) -> None:
        family, recipe = self.family, self.recipe
        draws = recipe.data.regularization_images.count or not recipe.evaluate.off
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
