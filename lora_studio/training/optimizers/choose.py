"""The optimizer that a recipe names: one of the table, or any class as "module:Class"."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import nn

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.errors import CheckpointError, RecipeError, reason_of
from lora_studio.recipe import Recipe
from lora_studio.recipe.training import TrainingConfig
from lora_studio.registry import did_you_mean
from lora_studio.rng import generator
from lora_studio.training.optimizers import NEEDS, OPTIMIZERS, Group, Needs
from lora_studio.training.optimizers.state import scalars_and_tensors

OURS = {"lr", "weight_decay"}  # the recipe has keys of their own for these


@dataclass(frozen=True)
class OptimizerOptions:
    """Which one, and what it is made with."""

    name: str
    weight_decay: float
    options: Mapping[str, object]


def options_of(training: TrainingConfig) -> OptimizerOptions:
    """The recipe's wishes."""
    return OptimizerOptions(training.optimizer, training.weight_decay, training.optimizer_options)


def make_optimizer(wanted: OptimizerOptions, groups: Sequence[Group]) -> torch.optim.Optimizer:
    """In its training mode, if it has one. Raises RecipeError for values that it does not take."""
    build = _builder(wanted.name)
    decay = {"weight_decay": wanted.weight_decay} if "weight_decay" in _parameters(build) else {}
    try:
        optimizer = build([dict(group) for group in groups], **decay, **wanted.options)
        if hasattr(optimizer, "train"):
            optimizer.train()
    except (TypeError, ValueError, AssertionError, LookupError) as error:
        raise RecipeError(
            f"training.optimizer = {wanted.name!r} cannot be made with these training.optimizer_options, "
            f"{dict(wanted.options)}: {reason_of(error)}."
        ) from None
    return optimizer


def optimizer_faults(recipe: Recipe) -> list[str]:
    """Everything but the learning rates that does not go with the optimizer, a sentence each."""
    training, name = recipe.training, recipe.training.optimizer
    try:
        needs = NEEDS.get(name, Needs())
        if needs.package and find_spec(needs.package) is None:
            return [
                f"training.optimizer = {name!r} needs the package {needs.package}, which is not installed; "
                f"run: pip install {needs.package}"
            ]
        build = _builder(name)
    except RecipeError as error:
        return [str(error)]
    shows_mean = needs.own_schedule or hasattr(build, "eval")
    sizes = _size_faults(recipe) if shows_mean else []
    return [*_option_faults(build, training), *_rule_faults(needs, training), *sizes]


def refuse_optimizer_that_fails(training: TrainingConfig, device: torch.device) -> None:
    """Three steps on a small tensor: RecipeError if they fail, CheckpointError if they cannot be kept."""
    wanted = options_of(training)
    why = _fault_of_trial(wanted, training.learning_rate, device)
    if why and wanted.options and _works_without_options(wanted, training.learning_rate, device):
        raise RecipeError(
            f"training.optimizer = {wanted.name!r} does not work with these training.optimizer_options, "
            f"{dict(wanted.options)}: {why}; correct them, or leave them out."
        )
    if why:
        raise RecipeError(
            f"training.optimizer = {wanted.name!r} does not work on this machine ({device}): {why}; "
            'choose another one, such as "adamw".'
        )


def _works_without_options(wanted: OptimizerOptions, rate: float, device: torch.device) -> bool:
    """As far as can be told: also if it cannot be made without them."""
    try:
        return not _fault_of_trial(replace(wanted, options={}), rate, device)
    except (RecipeError, CheckpointError):
        return True


def _fault_of_trial(wanted: OptimizerOptions, rate: float, device: torch.device) -> str:
    """Why three steps on a small tensor fail, empty if they do not; raises what is a sentence already."""
    start = torch.randn(96, 64, generator=generator("optimizer", "start")) / 100
    trial = nn.Parameter(start.clone().to(device))
    try:
        optimizer = make_optimizer(wanted, [{"params": [trial], "lr": rate}])
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


def _builder(name: str) -> Callable[..., torch.optim.Optimizer]:
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
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise RecipeError(f"training.optimizer = {name!r} is not a subclass of torch.optim.Optimizer.")
    return found


def _parameters(build: Callable[..., torch.optim.Optimizer]) -> list[str]:
    """Its named parameters, without the tensors."""
    return list(inspect.signature(build).parameters)[1:]


def _option_faults(build: Callable[..., torch.optim.Optimizer], training: TrainingConfig) -> list[str]:
    name, known = training.optimizer, _parameters(build)
    allowed = sorted(set(known) - OURS)
    faults = []
    for option in training.optimizer_options:
        if option in OURS:
            ours = {"lr": "learning_rate"}.get(option, option)
            faults.append(f"training.optimizer_options has {option!r}; set training.{ours} instead.")
        elif option not in allowed:
            hint = did_you_mean(option, allowed)
            faults.append(
                f"training.optimizer_options has {option!r}, which {name!r} does not know{hint} "
                f"Known: {', '.join(allowed)}."
            )
    if "weight_decay" not in known and training.weight_decay:
        faults.append(f"training.optimizer = {name!r} has no weight decay; set training.weight_decay = 0.")
    return faults


def _rule_faults(needs: Needs, training: TrainingConfig) -> list[str]:
    name, faults = training.optimizer, []
    if needs.own_schedule and training.lr_schedule != "constant":
        faults.append(
            f"training.lr_schedule is {training.lr_schedule!r}, but {name!r} averages the weights instead of "
            'lowering the learning rate; set training.lr_schedule = "constant", with a warm-up if you like.'
        )
    if needs.own_schedule and training.ema:
        faults.append(
            f"training.ema is {training.ema:g}, but {name!r} averages the weights itself; leave ema out."
        )
    return faults


def _size_faults(recipe: Recipe) -> list[str]:
    """What scales the weights that are trained, and not the mean that such an optimizer shows of them."""
    mends = {}
    if any(token.keep_norm for token in recipe.tokens):
        mends["tokens.keep_norm"] = "keep_norm = false in [[tokens]]"
    if recipe.adapter.max_norm:
        mends["adapter.max_norm"] = "adapter.max_norm = 0"
    if not mends:
        return []
    return [
        f"training.optimizer = {recipe.training.optimizer!r} shows and exports a mean of its own, whose size "
        f"{' and '.join(mends)} would spoil and not hold; set {' and '.join(mends.values())}, or take "
        "another optimizer."
    ]


def optimizer_bytes(recipe: Recipe, adapters: AdapterSet) -> int:
    """Of its state after a step, found by a step on ones in each tensor's shape, one at a time.

    At most: Prodigy keeps less of a tensor that begins as zero.
    """
    training, total = recipe.training, 0
    found: dict[torch.Size, int] = {}
    for parameter in adapters.named_parameters().values():
        if parameter.shape not in found:
            trial = nn.Parameter(torch.ones_like(parameter))
            trial.grad = torch.zeros_like(trial)
            groups = [{"params": [trial], "lr": training.learning_rate}]
            optimizer = make_optimizer(options_of(training), groups)
            optimizer.step()
            values = optimizer.state[trial].values()
            found[parameter.shape] = sum(value.nbytes for value in values if isinstance(value, torch.Tensor))
        total += found[parameter.shape]
    return total
