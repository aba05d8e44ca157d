"""Every refusal of a recipe that needs no image: `check_recipe` is called once, and says all faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lora_studio.adapters import ADAPTERS
from lora_studio.adapters.textual_inversion import check_tokens
from lora_studio.data.captioners import CAPTIONERS
from lora_studio.errors import BaseModelError, RecipeError
from lora_studio.families.base import ModelFamily, innermost_blocks
from lora_studio.lora_file.open import read_plain
from lora_studio.processes import ALONE, Processes
from lora_studio.quantization import NONE, QUANTIZERS
from lora_studio.quiet import paused_collector
from lora_studio.recipe import Recipe, RecipeChange
from lora_studio.recipe.adapter import NO_ADAPTER, AdapterConfig
from lora_studio.recipe.section import MOST_STEPS
from lora_studio.recipe.training import TrainingConfig
from lora_studio.runs import Run
from lora_studio.runs.reading import inputs_before
from lora_studio.training.machine import Machine
from lora_studio.training.machine.self_test import machine_faults, machine_here
from lora_studio.training.optimizers import make_schedule
from lora_studio.training.optimizers.choose import least_rate, optimizer_faults, trial_faults
from lora_studio.training.prepare.base_model import (
    INIT_FROM,
    AdapterPlan,
    bare_base_of,
    base_of,
    has_convolutions,
    objective_of,
    plan_adapters,
    start_faults,
)
from lora_studio.training.prepare.resume import (
    BASE,
    allowed_changes,
    base_lora,
    contents_of,
    input_faults,
    inputs_of,
)
from lora_studio.training.tracking import tracker_faults

T = TypeVar("T")
_MICRO_BATCHES = 10  # in a step on average, of the longest runs


@dataclass(frozen=True)
class Checked:
    """What the checks had to make, so that nothing is made twice."""

    machine: Machine
    family: ModelFamily  # as it was loaded: in the machine's dtype, on the CPU
    adapters: AdapterPlan
    inputs: Mapping[str, str]  # option -> sha256 of the LoRA file that it names, or of weights
    base_fingerprint: str
    changes: Sequence[RecipeChange]  # since the run that is resumed was started


class _Faults(list[str]):
    def of(self, make: Callable[[], T]) -> T | None:
        """What is made; a RecipeError is noted instead of raised."""
        try:
            return make()
        except RecipeError as error:
            self.append(str(error))
            return None


@paused_collector()
def check_recipe(
    recipe: Recipe, processes: Processes = ALONE, *, run: Run | None = None, trains: bool = True
) -> Checked:
    """Ask everything that needs no image. Raises RecipeError with all that is wrong, on every process.

    `run`: the files and the base have to be those that it began with; if it is going to be trained, and not
    only exported, the recipe, too. Raises BaseModelError if all that is wrong is a base that cannot be read.
    """
    faults, changes, before = _Faults(), list[RecipeChange](), dict[str, str]()
    if run is not None:
        before = processes.from_main(lambda: inputs_before(run.folder))
        if trains:
            changes = faults.of(lambda: processes.from_main(lambda: allowed_changes(run, recipe))) or []
    found: list[Checked] = []

    def check_here() -> None:
        machine, inputs = _machine(recipe, processes, faults, trains=trains), inputs_of(recipe)
        faults.extend(input_faults(run.folder, before, inputs) if run is not None else [])
        family, plan = _base(recipe, machine, faults), None
        if family is not None:
            faults.of(lambda: objective_of(recipe, family))
            faults.extend(_family_faults(recipe, family))
            plan = _adapters(recipe, family, faults, shards=recipe.machine.shard_base and processes.count > 1)
            faults.extend(_rate_faults(recipe, plan, family) if plan is not None and trains else [])
        if family is not None and not faults:
            contents = contents_of(family) if trains else {BASE: family.fingerprint(family.denoiser)}
            inputs |= contents
            # with [[base.loras]] not compared: another machine merges those with another rounding
            if run is not None and (not recipe.base.loras or BASE in {one.option for one in changes}):
                faults.extend(input_faults(run.folder, before, contents))
        if faults or machine is None or family is None or plan is None:
            raise RecipeError("\n".join(faults))
        found.append(Checked(machine, family, plan, inputs, inputs[BASE], changes))

    processes.each(check_here)
    return found[0]


def _machine(recipe: Recipe, processes: Processes, faults: _Faults, *, trains: bool) -> Machine | None:
    """If it is there; all is checked that needs no base."""
    unknown = name_faults(recipe)
    faults += unknown + _sharding_faults(recipe, processes) + offload_faults(recipe, processes)
    for number, one in enumerate(recipe.base.loras):
        if not one.file.is_file():
            faults.of(lambda path=one.file, number=number: read_plain(path, base_lora(number)))  # type: ignore[misc]
    machine = faults.of(lambda: machine_here(recipe.machine, recipe.base, processes))
    if machine is not None and not unknown:
        faults += machine_faults(machine)
        faults += trial_faults(recipe.training, machine.device) if trains else []
    return machine


def _base(recipe: Recipe, machine: Machine | None, faults: _Faults) -> ModelFamily | None:
    """Without its weights, which take their time, if there are faults already."""
    if not faults and machine is not None:
        family = base_of(recipe, dtype=machine.dtype, staged=True)
        family.max_chunks = recipe.data.max_token_chunks
        return family
    try:
        return bare_base_of(recipe)
    except BaseModelError as error:
        faults.append(str(error))
        return None


def name_faults(recipe: Recipe) -> list[str]:
    """What its table does not know of the recipe's names, or what does not go with what it knows."""
    wanted = [(CAPTIONERS, recipe.data.captioner), (QUANTIZERS, recipe.base.quantize)]
    if recipe.adapter.kind != NO_ADAPTER:
        wanted.append((ADAPTERS, recipe.adapter.kind))
    faults = _Faults(tracker_faults(recipe.tracking.to))
    faults += optimizer_faults(recipe.training, recipe.adapter, recipe.tokens)
    faults += schedule_faults(recipe.training)
    for table, name in wanted:
        faults.of(lambda table=table, name=name: table.check(name))  # type: ignore[misc]
    return faults


def schedule_faults(training: TrainingConfig) -> list[str]:
    """What is wrong with the schedule, or a warm-up that is not the default, which short trials have, too."""
    faults = _Faults()
    faults.of(lambda: make_schedule(training.lr_schedule, training.lr_schedule_floor))
    micro_batches = training.steps * training.gradient_accumulation
    if training.epochs is None and max(training.steps, micro_batches // _MICRO_BATCHES) > MOST_STEPS:
        faults.append(
            f"the run would have {training.steps:,} steps and {micro_batches:,} micro-batches; at most "
            f"{MOST_STEPS:,} and {MOST_STEPS * _MICRO_BATCHES:,} are possible: lower training.steps, "
            "training.epochs or training.gradient_accumulation."
        )
    usual = TrainingConfig.model_fields["warmup_steps"].default
    if training.warms_up_to_the_end and training.warmup_steps != usual:
        faults.append(
            f"training.warmup_steps is {training.warmup_steps:g}, but there are only {training.steps} steps, "
            "so the learning rate would rise to the last one; make it smaller, or give more steps."
        )
    return faults


def _sharding_faults(recipe: Recipe, processes: Processes) -> list[str]:
    if not recipe.machine.shard_base or processes.count == 1:
        return []
    faults = [
        f"machine.shard_base and objective.{option} do not go together: all processes have to run the base "
        "at once, and an image that asks it makes only its own run it once more; leave one out."
        for option in ("preservation", "masked_preservation")
        if getattr(recipe.objective, option)
    ]
    if recipe.base.quantize != NONE or recipe.machine.compile is True:
        faults.append("machine.shard_base needs base.quantize and machine.compile off; leave one out.")
    return faults


def offload_faults(recipe: Recipe, processes: Processes) -> list[str]:
    """What needs no base; sentences."""
    faults, option = list[str](), "machine.offload_blocks"
    if not recipe.machine.offload_blocks:
        return faults
    if processes.count > 1:
        why = "each would keep the blocks in main memory again"
        faults.append(f"{option} is for one process, as {why}; leave it out, or launch one.")
    if recipe.machine.compile is True:
        faults.append(
            f"{option} and machine.compile do not go together, as a compiled block keeps the weights that it "
            "was compiled with; leave one out."
        )
    return faults


def _adapters(recipe: Recipe, family: ModelFamily, faults: _Faults, *, shards: bool) -> AdapterPlan | None:
    if (config := recipe.adapter).kind != NO_ADAPTER and config.kind not in ADAPTERS.names():
        return None
    faults.of(lambda: check_tokens(family, recipe.tokens))
    faults += _kind_faults(recipe, family, shards=shards)
    plan = faults.of(lambda: plan_adapters(recipe, family))
    if (path := config.init_from) is not None and plan is None:
        faults.of(lambda: read_plain(path, INIT_FROM))
    elif plan is not None and path is not None:
        faults.of(lambda: faults.extend(start_faults(config, family, plan.chosen.layers)))
    return plan


def _family_faults(recipe: Recipe, family: ModelFamily) -> Iterator[str]:
    """What a recipe asks of the text side that this base does not have."""
    if (chunks := recipe.data.max_token_chunks) > family.most_chunks:
        yield (
            f"data.max_token_chunks is {chunks}, but this base reads a caption in one go, "
            f"up to {_tokens_read(family)} tokens of it; leave it out."
        )
    if recipe.samples.negative_prompt and not family.reads_negative_prompts:
        yield "samples.negative_prompt is given, but this kind of base reads none; leave it out."
    blocks, wanted = len([*innermost_blocks(family.parts[family.denoiser])]), recipe.machine.offload_blocks
    if isinstance(wanted, int) and wanted > blocks:
        has = f"this base has {blocks} blocks"
        yield f'machine.offload_blocks is {wanted}, but {has}; give 0 to {blocks}, or "auto".'
    drawn = recipe.data.regularization_images
    if drawn.count and family.distilled and drawn.guidance > 1:
        steps = family.usual_sampling.steps
        yield (
            f"data.regularization_images.guidance is {drawn.guidance:g}, but this base is distilled to a few "
            f"steps and has no guidance; set it to 1, and data.regularization_images.steps to {steps}."
        )
    if recipe.adapter.text_encoder and not any(part in family.targets for part in family.text_encoders):
        yield (
            "adapter.text_encoder is true, but the text encoders of this kind of base stay as they are; "
            "leave it out."
        )


def _tokens_read(family: ModelFamily) -> int:
    return min(one.model_max_length for one in family.caption_tokenizers.values())


def _kind_faults(recipe: Recipe, family: ModelFamily, *, shards: bool) -> list[str]:
    config = recipe.adapter
    if config.kind == NO_ADAPTER:
        return []
    kind, faults = ADAPTERS[config.kind], _meaningless(config)
    if kind.trains_layers and recipe.tokens:
        faults.append(
            f"adapter.kind = {config.kind!r} ends as a whole base, which [[tokens]] are no part of; leave "
            "them out, or take a kind that ends as a LoRA file."
        )
    if config.blocks not in (known := ["all", *family.block_choices]):
        may = ", ".join(map(repr, known))
        faults.append(f"adapter.blocks is {config.blocks!r}; for this base it may be {may}.")
    if (config.conv_rank or config.conv_alpha) and not has_convolutions(config):
        faults.append(
            "adapter.conv_rank and adapter.conv_alpha are of convolutions, which are not trained; "
            'set adapter.conv = true, or adapter.kind = "locon".'
        )
    if config.lora_plus_ratio != 1 and not kind.faster and "lora_plus_ratio" not in kind.unused:
        faults.append(f"adapter.lora_plus_ratio does not go with the kind {config.kind!r}; leave it out.")
    if recipe.base.quantize == NONE and not shards and not recipe.machine.offload_blocks:
        return faults
    if kind.trains_layers:
        faults.append(
            f"adapter.kind = {config.kind!r} trains the base's weights, which can be neither in fewer "
            "bits nor spread over processes nor in main memory; leave base.quantize, machine.shard_base and "
            'machine.offload_blocks out, or use "lora".'
        )
    elif kind.reads_weight or config.start != "default":
        faults.append(
            f"adapter.kind = {config.kind!r} with adapter.start = {config.start!r} reads the frozen weights, "
            "which goes with none of base.quantize, machine.shard_base and machine.offload_blocks; leave "
            "one out."
        )
    return faults


def _meaningless(config: AdapterConfig) -> list[str]:
    """What was given though it means nothing to the kind."""
    unused, given = ADAPTERS[config.kind].unused, config.model_fields_set
    names = [f"adapter.{name}" for name in AdapterConfig.model_fields if name in unused & given]
    for name in ("rank", "alpha"):
        if name in unused and any(getattr(layer, name) is not None for layer in config.layers):
            names.append(f"the {name} of an [[adapter.layers]]")
    fault = (
        f"adapter.kind = {config.kind!r} has no use for {', '.join(names)}: the layers' own tensors are "
        "trained, whole; take that out."
    )
    return [fault] if names else []


def _rate_faults(recipe: Recipe, plan: AdapterPlan, family: ModelFamily) -> list[str]:
    name, unknown = (
        recipe.training.optimizer,
        optimizer_faults(recipe.training, recipe.adapter, recipe.tokens),
    )
    if unknown or not (least := least_rate(recipe.training)):
        return []
    rates = used_rates(recipe, plan, family)
    said = [f"{option} is {rate:g}" for option, rate in rates.items()]
    if len(set(rates.values())) > 1:
        return [
            f"training.optimizer = {name!r} finds one rate for everything that is trained, but it is given "
            f"several factors on it: {', '.join(said)}; set each of these options to 1."
        ]
    if min(rates.values()) < least:
        return [
            f"{' and '.join(said)}, but {name!r} finds its own rate and takes this as a factor on it: "
            f"set it to 1, and not below {least:g}."
        ]
    return []


def used_rates(recipe: Recipe, plan: AdapterPlan, family: ModelFamily) -> dict[str, float]:
    """Option -> learning rate, of all that will be trained and of nothing else."""
    training, config, found = recipe.training, recipe.adapter, dict[str, float]()
    for place, one in plan.chosen.items():
        if (own := one.learning_rate) is not None:
            by = next(rule.pattern for rule in reversed(config.layers) if rule.learning_rate == own)
            found[f"adapter.layers.learning_rate of {by!r}"] = own
        elif place.part == family.denoiser:
            found["training.learning_rate"] = training.learning_rate
        else:
            found["training.text_encoder_learning_rate"] = training.text_encoder_learning_rate
    if plan.chosen and config.lora_plus_ratio != 1 and ADAPTERS[config.kind].faster:
        ratio = config.lora_plus_ratio
        found |= {f"{option} times adapter.lora_plus_ratio": rate * ratio for option, rate in found.items()}
    return found | {f"tokens.learning_rate of {one.token!r}": one.learning_rate for one in recipe.tokens}
