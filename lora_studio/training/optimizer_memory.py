"""How much memory an optimizer's state takes."""

from __future__ import annotations

import torch
from torch import nn

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.recipe import Recipe
from lora_studio.training.optimizer_choice import make_optimizer, options_of


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
