"""Optimizers and learning-rate schedules by name.

Optimizers get (groups, weight_decay=...) with a learning rate in each group, and options. The groups become
the optimizer's own: `make_optimizer` hands it copies. A new one needs a function here, with what it `needs`
of a recipe, and a line in the table.
"""

from __future__ import annotations

import inspect
import io
import math
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lora_studio.errors import RecipeError
from lora_studio.registry import Registry

Group = dict[str, Any]  # "params": the tensors, "lr": their learning rate
Groups = Sequence[Group]
Betas = tuple[float, float]
Builder = Callable[..., Optimizer]

_NAMES = ("adamw", "adamw8bit", "adafactor", "lion", "prodigy", "schedule_free")
OPTIMIZERS: Registry[Builder] = Registry("optimizer", {name: f"{__name__}:{name}" for name in _NAMES})


@dataclass(frozen=True)
class Needs:
    """What an optimizer asks of the rest of a recipe."""

    package: str = ""  # what pip calls it
    least_rate: float = 0.0  # above 0: it finds one rate for all, and takes one factor on it
    own_schedule: bool = False  # it averages the weights of all steps, which stands in for a falling rate
    elementwise: bool = False  # what it does to a number depends on no other: tensors can lie in one


_NEEDS: dict[Builder, Needs] = {}


def needs(
    package: str = "", *, least_rate: float = 0.0, own_schedule: bool = False, elementwise: bool = False
) -> Callable[[Builder], Builder]:
    """Says of an optimizer which package it needs, its least learning rate and how its steps may be taken."""

    def note(build: Builder) -> Builder:
        _NEEDS[build] = Needs(package, least_rate, own_schedule, elementwise)
        return build

    return note


def needs_of(build: Builder) -> Needs:
    return _NEEDS.get(build, Needs())


@needs(elementwise=True)
def adamw(
    groups: Groups, *, weight_decay: float, betas: Betas = (0.9, 0.999), eps: float = 1e-8
) -> Optimizer:
    """AdamW, arXiv 1711.05101, in one call for all tensors where torch has that for their device."""

    def made(*, fused: bool | None) -> Optimizer:
        copies = [dict(group) for group in groups]
        return torch.optim.AdamW(copies, weight_decay=weight_decay, betas=betas, eps=eps, fused=fused)

    try:
        return made(fused=True)
    except RuntimeError:  # torch asks the tensors' device when it is made
        return made(fused=None)


@needs("bitsandbytes")
def adamw8bit(
    groups: Groups, *, weight_decay: float, betas: Betas = (0.9, 0.999), eps: float = 1e-8
) -> Optimizer:
    """AdamW with moments of 8 bits, arXiv 2110.02861; those of tensors below 4096 numbers stay float32."""
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, weight_decay=weight_decay, betas=betas, eps=eps)


def adafactor(
    groups: Groups,
    *,
    weight_decay: float,
    clip_threshold: float = 1.0,
    decay_rate: float = -0.8,
    beta1: float | None = None,
) -> Optimizer:
    """Adafactor, arXiv 1804.04235, at the recipe's learning rate: hardly any memory for its state."""
    from transformers.optimization import Adafactor

    return Adafactor(
        groups,
        weight_decay=weight_decay,
        clip_threshold=clip_threshold,
        decay_rate=decay_rate,
        beta1=beta1,
        scale_parameter=False,  # unlike sec. 8: half of an adapter's tensors begin as zero
        relative_step=False,
    )


class Lion(Optimizer):
    """arXiv 2302.06675, algorithm 2; the paper advises a third to a tenth of AdamW's learning rate."""

    def __init__(self, groups: Groups, *, weight_decay: float, betas: Betas) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}; both must be at least 0 and less than 1")
        super().__init__(list(groups), {"lr": 1e-4, "weight_decay": weight_decay, "betas": betas})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Sign of the interpolated momentum, decay, then momentum (arXiv 2302.06675, algorithm 2)."""
        for group in self.param_groups:
            parameters: list[Tensor] = [one for one in group["params"] if one.grad is not None]
            if not parameters:
                continue
            gradients: list[Tensor] = [one.grad for one in parameters if one.grad is not None]
            for one in parameters:
                if not self.state[one]:
                    self.state[one]["mean"] = torch.zeros_like(one)
            means: list[Tensor] = [self.state[one]["mean"] for one in parameters]
            first, second = group["betas"]
            signs = torch._foreach_lerp(means, gradients, 1 - first)
            torch._foreach_sign_(signs)
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, signs, alpha=-group["lr"])
            torch._foreach_lerp_(means, gradients, 1 - second)


@needs(elementwise=True)
def lion(groups: Groups, *, weight_decay: float, betas: Betas = (0.9, 0.99)) -> Lion:
    """The sign of a mean of gradients, with half of Adam's state."""
    return Lion([dict(group) for group in groups], weight_decay=weight_decay, betas=betas)


@needs("prodigyopt", least_rate=0.1)
def prodigy(
    groups: Groups,
    *,
    weight_decay: float,
    betas: Betas = (0.9, 0.999),
    d_coef: float = 1.0,
    d0: float = 1e-6,
    growth_rate: float = float("inf"),
    use_bias_correction: bool = True,  # as its authors advise for diffusion models
    safeguard_warmup: bool = True,  # as they advise for a warm-up
) -> Optimizer:
    """Prodigy, arXiv 2306.06101: Adam that finds its rate, which the learning rate is a factor on."""
    rates = sorted({group["lr"] for group in groups})
    if len(rates) > 1:
        raise RecipeError(
            f'training.optimizer = "prodigy" finds one rate for everything that is trained, but there are '
            f"several factors on it: {', '.join(f'{rate:g}' for rate in rates)}; make them equal."
        )
    from prodigyopt import Prodigy

    with redirect_stdout(io.StringIO()):  # it prints that its weight decay is decoupled
        optimizer = Prodigy(
            groups,
            weight_decay=weight_decay,
            betas=betas,
            d_coef=d_coef,
            d0=d0,
            growth_rate=growth_rate,
            use_bias_correction=use_bias_correction,
            safeguard_warmup=safeguard_warmup,
        )
    forgotten: set[Tensor] = set()
    optimizer.register_step_pre_hook(lambda *_: _forget_what_stopped(optimizer, forgotten))
    return optimizer


def _forget_what_stopped(optimizer: Optimizer, forgotten: set[Tensor]) -> None:
    """Take the share of tensors that are not trained any more out of Prodigy's estimate of its rate.

    That is a running sum over all that ever learned, divided by the sum of |s| over what learns now: without
    this it would rise in the step after a `stop_at`, for good.
    """
    stopped = [one for one in optimizer.state if not one.requires_grad and one not in forgotten]
    if not stopped:
        return
    sums = {one: values["s"] for one, values in optimizer.state.items()}
    of_all = sum(float(s.abs().sum()) for s in sums.values())
    for one in stopped:
        sums[one].zero_()
    forgotten.update(stopped)
    left = sum(float(s.abs().sum()) for s in sums.values())
    for group in optimizer.param_groups:
        group["d_numerator"] *= left / of_all if of_all else 1.0


@needs("schedulefree", own_schedule=True)
def schedule_free(
    groups: Groups, *, weight_decay: float, betas: Betas = (0.9, 0.999), eps: float = 1e-8, r: float = 0.0
) -> Optimizer:
    """Schedule-free AdamW, arXiv 2405.15682: its `eval()` shows the mean of all weights so far."""
    from schedulefree import AdamWScheduleFree

    return AdamWScheduleFree(groups, weight_decay=weight_decay, betas=betas, eps=eps, r=r)


Schedule = Callable[[float], float]
"""Share of the way done after the warm-up, 0..1 -> factor on the learning rate."""


def cosine(done: float, *, floor: float = 0.1) -> float:
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def linear(done: float, *, floor: float = 0.0) -> float:
    return floor + (1 - floor) * (1 - done)


def constant(done: float) -> float:
    return 1.0


_SCHEDULES = ("cosine", "linear", "constant")
SCHEDULES: Registry[Schedule] = Registry("schedule", {name: f"{__name__}:{name}" for name in _SCHEDULES})


def make_schedule(name: str, floor: float | None) -> Schedule:
    """The schedule of this name, ending at `floor` or, if that is None, where it always does.

    Raises RecipeError for an unknown name, and for a floor of a schedule that never falls.
    """
    schedule = SCHEDULES[name]
    if floor is None:
        return schedule
    if "floor" not in inspect.signature(schedule).parameters:
        what = f"training.lr_schedule_floor is {floor:g}, but the schedule {name!r} does not fall"
        raise RecipeError(f'{what}; leave it out, or set training.lr_schedule = "cosine" or "linear".')
    return partial(schedule, floor=floor)  # type: ignore[call-arg]


def ends_at_zero(schedule: Schedule) -> bool:
    return schedule(1.0) == 0.0


def factor(schedule: Schedule, step: int, *, steps: int, warmup_steps: int, zero_last: bool = False) -> float:
    """The factor for step 1..steps: a linear warm-up, then the schedule, which ends at the last step.

    One that ends at 0 does so a step later, as torch's and transformers' do, since a step with the rate 0
    learns nothing; not with `zero_last`, as of runs that began before that was so.
    """
    if step <= warmup_steps:
        return step / warmup_steps
    after = step - warmup_steps
    if ends_at_zero(schedule) and not zero_last:
        after -= 1
    return schedule(after / max(1, steps - warmup_steps))
