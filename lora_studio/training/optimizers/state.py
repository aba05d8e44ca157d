"""An optimizer's state as numbers and tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lora_studio.errors import CheckpointError

Scalar = int | float | None


def scalars_and_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]
) -> tuple[dict[str, Scalar], dict[str, Tensor]]:
    """All that an optimizer keeps, by `<canonical key>|<name>`, or `#<number of the group>|<name>`.

    Of the groups what a step changes: numbers that are not as they were made, but for the learning rate,
    which the schedule says. Raises CheckpointError for a state that is neither a number nor a tensor.
    """
    found: dict[str, object] = {
        f"{name}|{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
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
