"""The optimizer that a recipe names: one of the table, or any class as "module:Class"."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType

import torch
from torch import Tensor, nn

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.stack import Places
from lora_studio.errors import CheckpointError, RecipeError, reason_of
from lora_studio.recipe.adapter import AdapterConfig, TokenConfig
from lora_studio.recipe.training import TrainingConfig
from lora_studio.registry import did_you_mean
from lora_studio.rng import generator
from lora_studio.training.optimizers import OPTIMIZERS, Builder, Group, needs_of

Scalar = int | float | None
OURS = {"lr", "weight_decay"}  # the recipe has keys of their own for these


def make_optimizer(training: TrainingConfig, groups: Sequence[Group]) -> torch.optim.Optimizer:
    """In its training mode, if it has one. Raises RecipeError for values that it does not take."""
    build, options = _builder(training.optimizer), training.optimizer_options
    decay = {"weight_decay": training.weight_decay} if "weight_decay" in _parameters(build) else {}
    try:
        optimizer = build([dict(group) for group in groups], **decay, **options)
        if hasattr(optimizer, "train"):
            optimizer.train()
    except (TypeError, ValueError, AssertionError, LookupError) as error:
        given = f"these training.optimizer_options, {dict(options)}"
        what = f"training.optimizer = {training.optimizer!r} cannot be made with {given}"
        raise RecipeError(f"{what}: {reason_of(error)}.") from None
    return optimizer


def optimizer_faults(
    training: TrainingConfig, adapter: AdapterConfig, tokens: Sequence[TokenConfig]
) -> list[str]:
    """Everything but the learning rates that does not go with the optimizer, a sentence each."""
    name = training.optimizer
    try:
        build = _builder(name)
    except RecipeError as error:
        return [str(error)]
    needs = needs_of(build)
    if needs.package and find_spec(needs.package) is None:
        what = f"training.optimizer = {name!r} needs the package {needs.package}, which is not installed"
        return [f"{what}; run: pip install {needs.package}"]
    shows_mean = needs.own_schedule or hasattr(build, "eval")
    sizes = _size_faults(name, adapter, tokens) if shows_mean else []
    averaging = _averaging_faults(training) if needs.own_schedule else []
    return [*_option_faults(build, training), *averaging, *sizes]


def least_rate(training: TrainingConfig) -> float:
    """Above 0: the optimizer finds one rate for everything, and takes one factor of at least this on it."""
    return needs_of(_builder(training.optimizer)).least_rate


def trial_faults(training: TrainingConfig, device: torch.device) -> list[str]:
    """Why three steps on a small tensor fail there, or a checkpoint could not hold the optimizer's state."""
    what, options = f"training.optimizer = {training.optimizer!r} does not work", training.optimizer_options
    try:
        why = _why_trial_fails(training, device)
    except (RecipeError, CheckpointError) as error:
        return [str(error)]
    if not why:
        return []
    plain = training.model_copy(update={"optimizer_options": {}})
    try:
        options_fail = bool(options) and not _why_trial_fails(plain, device)
    except (RecipeError, CheckpointError):  # it cannot be made without them
        options_fail = True
    if options_fail:
        what += f" with these training.optimizer_options, {dict(options)}"
        return [f"{what}: {why}; correct them, or leave them out."]
    return [f'{what} on this machine ({device}): {why}; choose another one, such as "adamw".']


def _why_trial_fails(training: TrainingConfig, device: torch.device) -> str:
    """Empty if it does not; raises what is a sentence already."""
    start = torch.randn(96, 64, generator=generator("optimizer", "start")) / 100
    trial = nn.Parameter(start.clone().to(device))
    try:
        optimizer = make_optimizer(training, [{"params": [trial], "lr": training.learning_rate}])
        for step in range(3):
            trial.grad = torch.randn(start.shape, generator=generator("optimizer", step)).to(device)
            optimizer.step()
        scalars_and_tensors(optimizer, {"trial": trial})
    except (RecipeError, CheckpointError):
        raise
    except Exception as error:  # whatever a library or a driver has to say
        return reason_of(error)
    ended = trial.detach().cpu()
    if not ended.isfinite().all():
        return "its steps are not finite"
    return "its steps change nothing" if torch.equal(ended, start) else ""


def _builder(name: str) -> Builder:
    if ":" not in name:
        return OPTIMIZERS[name]
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(
            f"training.optimizer = {name!r} cannot be imported ({reason_of(error)}); write it as "
            '"module:Class", such as "torch.optim:NAdam", and install what it is in.'
        ) from None
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
        return found
    raise RecipeError(f"training.optimizer = {name!r} is not a subclass of torch.optim.Optimizer.")


def _parameters(build: Builder) -> list[str]:
    return list(inspect.signature(build).parameters)[1:]


def _option_faults(build: Builder, training: TrainingConfig) -> list[str]:
    name, known = training.optimizer, _parameters(build)
    allowed = sorted(set(known) - OURS)
    faults = []
    for option in training.optimizer_options:
        if option in OURS:
            ours = {"lr": "learning_rate"}.get(option, option)
            faults.append(f"training.optimizer_options has {option!r}; set training.{ours} instead.")
        elif option not in allowed:
            what = f"training.optimizer_options has {option!r}, which {name!r} does not know"
            faults.append(f"{what}{did_you_mean(option, allowed)} Known: {', '.join(allowed)}.")
    if "weight_decay" not in known and training.weight_decay:
        faults.append(f"training.optimizer = {name!r} has no weight decay; set training.weight_decay = 0.")
    return faults


def _averaging_faults(training: TrainingConfig) -> list[str]:
    averages, faults = f"but {training.optimizer!r} averages the weights", []
    if training.lr_schedule != "constant":
        faults.append(
            f"training.lr_schedule is {training.lr_schedule!r}, {averages} instead of lowering the learning "
            'rate; set training.lr_schedule = "constant", with a warm-up if you like.'
        )
    if training.ema:
        faults.append(f"training.ema is {training.ema:g}, {averages} itself; leave ema out.")
    return faults


def _size_faults(name: str, adapter: AdapterConfig, tokens: Sequence[TokenConfig]) -> list[str]:
    """What scales the weights that are trained, and not the mean that such an optimizer shows of them."""
    mends = {}
    if any(token.keep_norm for token in tokens):
        mends["tokens.keep_norm"] = "keep_norm = false in [[tokens]]"
    if adapter.max_norm:
        mends["adapter.max_norm"] = "adapter.max_norm = 0"
    what = (
        f"training.optimizer = {name!r} shows and exports a mean of its own, whose size {' and '.join(mends)}"
    )
    mend = f"set {' and '.join(mends.values())}, or take another optimizer."
    return [f"{what} would spoil and not hold; {mend}"] if mends else []


def optimizer_bytes(training: TrainingConfig, adapters: AdapterSet) -> int:
    """Of its state after a step, found by a step on ones in each tensor's shape, one at a time.

    At most: Prodigy keeps less of a tensor that begins as zero.
    """
    stack_of = adapters.stack_of if is_elementwise(training.optimizer) else {}
    tensors = adapters.named_parameters().values()
    parameters = {stack_of[one].stack.whole if one in stack_of else one: None for one in tensors}
    found: dict[torch.Size, int] = {}
    for shape, parameter in {one.shape: one for one in parameters}.items():
        trial = nn.Parameter(torch.ones_like(parameter))
        trial.grad = torch.zeros_like(trial)
        optimizer = make_optimizer(training, [{"params": [trial], "lr": training.learning_rate}])
        optimizer.step()
        found[shape] = sum(one.nbytes for one in optimizer.state[trial].values() if isinstance(one, Tensor))
    return sum(found[one.shape] for one in parameters)


def is_elementwise(optimizer: str) -> bool:
    """Whether it makes the same of tensors that lie in one as of each alone, but for rounding."""
    return needs_of(_builder(optimizer)).elementwise


def parameter_groups(
    adapters: AdapterSet, rates: Mapping[str, float], *, faster: float = 1.0, stacked: bool = False
) -> list[Group]:
    """One group for every part and learning rate, in the layers' order; then those of new tokens.

    `rates`: of the parts, for layers without one of their own. `faster`: LoRA+, what the rates of tensors
    that begin as zero are multiplied by. `stacked`: of tensors that lie in one, that one.
    """
    groups: dict[tuple[str, float], Group] = {}
    stack_of = adapters.stack_of if stacked else {}
    for layer in adapters.layers:
        rate = rates[layer.part] if layer.learning_rate is None else layer.learning_rate
        for end, tensor in layer.tensors.items():
            own = rate * faster if end in layer.kind.faster else rate
            of_group = groups.setdefault((layer.part, own), {"params": {}, "lr": own})["params"]
            of_group[stack_of[tensor].stack.whole if tensor in stack_of else tensor] = None
    for token in adapters.tokens:
        rate = rates[token.part] if token.learning_rate is None else token.learning_rate
        groups.setdefault((token.name, rate), {"params": {}, "lr": rate})["params"][token.rows] = None
    return [group | {"params": list(group["params"])} for group in groups.values()]


def scalars_and_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], places: Places = MappingProxyType({})
) -> tuple[dict[str, Scalar], dict[str, Tensor]]:
    """All that an optimizer keeps, by `<canonical key>|<name>`, or `#<number of the group>|<name>`.

    What it keeps of tensors that lie in one is taken apart again: `places` says where they are.

    Of the groups what a step changes: numbers that are not as they were made, but for the learning rate,
    which the schedule says. Raises CheckpointError for a state that is neither a number nor a tensor.
    """
    found: dict[str, object] = {
        f"{name}|{key}": value
        for name, parameter in parameters.items()
        for key, value in _kept_of(optimizer, parameter, places).items()
    }
    for number, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            kept = isinstance(value, int | float | Tensor) and not isinstance(value, bool)
            if kept and key != "lr" and (isinstance(value, Tensor) or value != optimizer.defaults.get(key)):
                found[f"#{number}|{key}"] = value
    scalars: dict[str, Scalar] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in found.items():
        if isinstance(value, Tensor):
            tensors[name] = value.detach().cpu().clone()
        elif value is None or isinstance(value, int | float):
            scalars[name] = value  # JSON's numbers are exact
        else:
            raise CheckpointError(
                f"the optimizer {type(optimizer).__name__} keeps a {type(value).__name__} "
                f"({name.rpartition('|')[2]}), which no checkpoint can hold; choose another optimizer."
            )
    return scalars, tensors


def _kept_of(optimizer: torch.optim.Optimizer, parameter: Tensor, places: Places) -> dict[str, object]:
    """What it keeps of a tensor, or of its part of the one that it lies in."""
    place = places.get(parameter)
    if place is None or parameter in optimizer.state:
        return optimizer.state.get(parameter, {})
    whole = place.stack.whole
    kept = optimizer.state.get(whole, {})
    return {
        key: value[place.number] if isinstance(value, Tensor) and value.shape == whole.shape else value
        for key, value in kept.items()
    }
