"""Optimizers by name. All get (groups, weight_decay=...) with a learning rate in each group, and options.

The groups become the optimizer's own: `make_optimizer` hands it copies.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.errors import RecipeError
from lora_studio.registry import Registry

Group = dict[str, Any]  # "params": the tensors, "lr": their learning rate
Betas = tuple[float, float]

_HERE = "lora_studio.training.optimizers"
OPTIMIZERS: Registry[Callable[..., torch.optim.Optimizer]] = Registry(
    "optimizer",
    {
        "adamw": f"{_HERE}:adamw",
        "adamw8bit": f"{_HERE}:adamw8bit",
        "adafactor": f"{_HERE}:adafactor",
        "lion": "lora_studio.training.optimizers.lion:lion",
        "prodigy": f"{_HERE}:prodigy",
        "schedule_free": f"{_HERE}:schedule_free",
    },
)


@dataclass(frozen=True)
class Needs:
    """What an optimizer asks of the rest of a recipe."""

    package: str = ""  # what pip calls it
    least_rate: float = 0.0  # above 0: it finds one rate for all, and takes one factor on it
    own_schedule: bool = False  # it averages the weights of all steps, which stands in for a falling rate


NEEDS = {
    "adamw8bit": Needs("bitsandbytes"),
    "prodigy": Needs("prodigyopt", least_rate=0.1),
    "schedule_free": Needs("schedulefree", own_schedule=True),
}


def adamw(
    groups: Sequence[Group], *, weight_decay: float, betas: Betas = (0.9, 0.999), eps: float = 1e-8
) -> torch.optim.Optimizer:
    """AdamW, arXiv 1711.05101, in one call for all tensors where torch has that for their device."""

    def made(*, fused: bool | None) -> torch.optim.Optimizer:
        copies = [dict(group) for group in groups]
        return torch.optim.AdamW(copies, weight_decay=weight_decay, betas=betas, eps=eps, fused=fused)

    try:
        return made(fused=True)
    except RuntimeError:  # torch asks the tensors' device when it is made
        return made(fused=None)


def adamw8bit(
    groups: Sequence[Group], *, weight_decay: float, betas: Betas = (0.9, 0.999), eps: float = 1e-8
) -> torch.optim.Optimizer:
    """AdamW with moments of 8 bits, arXiv 2110.02861; those of tensors below 4096 numbers stay float32."""
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, weight_decay=weight_decay, betas=betas, eps=eps)


def adafactor(
    groups: Sequence[Group],
    *,
    weight_decay: float,
    clip_threshold: float = 1.0,
    decay_rate: float = -0.8,
    beta1: float | None = None,
) -> torch.optim.Optimizer:
    """Adafactor, arXiv 1804.04235, at the recipe's learning rate: hardly any memory for its state.

    Not scaled by a tensor's size as in sec. 8: half of an adapter's tensors begin as zero.
    """
    from transformers.optimization import Adafactor

    return Adafactor(
        groups,
        weight_decay=weight_decay,
        clip_threshold=clip_threshold,
        decay_rate=decay_rate,
        beta1=beta1,
        scale_parameter=False,
        relative_step=False,
    )


def prodigy(
    groups: Sequence[Group],
    *,
    weight_decay: float,
    betas: Betas = (0.9, 0.999),
    d_coef: float = 1.0,
    d0: float = 1e-6,
    growth_rate: float = float("inf"),
    use_bias_correction: bool = True,
    safeguard_warmup: bool = True,
) -> torch.optim.Optimizer:
    """Prodigy, arXiv 2306.06101: Adam that finds its rate, which the learning rate is a factor on.

    The last two are on as its authors advise for diffusion models and a warm-up.
    """
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
    forgotten: set[torch.Tensor] = set()
    optimizer.register_step_pre_hook(lambda *_: _forget_what_stopped(optimizer, forgotten))
    return optimizer


def _forget_what_stopped(optimizer: torch.optim.Optimizer, forgotten: set[torch.Tensor]) -> None:
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


def schedule_free(
    groups: Sequence[Group],
    *,
    weight_decay: float,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    r: float = 0.0,
) -> torch.optim.Optimizer:
    """Schedule-free AdamW, arXiv 2405.15682: its `eval()` shows the mean of all weights so far."""
    from schedulefree import AdamWScheduleFree

    return AdamWScheduleFree(groups, weight_decay=weight_decay, betas=betas, eps=eps, r=r)


def parameter_groups(adapters: AdapterSet, rates: Mapping[str, float], *, faster: float = 1.0) -> list[Group]:
    """One group for every part and learning rate, in the layers' order; then those of new tokens.

    `rates`: of the parts, for layers without one of their own. `faster`: LoRA+, what the rates of tensors
    that begin as zero are multiplied by.
    """
    groups: dict[tuple[str, float], Group] = {}
    for layer in adapters.layers:
        rate = rates[layer.part] if layer.learning_rate is None else layer.learning_rate
        for end, tensor in layer.tensors.items():
            own = rate * faster if end in layer.kind.faster else rate
            groups.setdefault((layer.part, own), {"params": [], "lr": own})["params"].append(tensor)
    for token in adapters.tokens:
        rate = rates[token.part] if token.learning_rate is None else token.learning_rate
        groups.setdefault((token.name, rate), {"params": [], "lr": rate})["params"].append(token.rows)
    return list(groups.values())
