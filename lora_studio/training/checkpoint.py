"""The whole state of a run between two steps: adapters, optimizer and step, as safetensors and JSON.

Random numbers are keyed by the step, so there is no generator state to keep.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_studio.adapters.base import AdapterSet
from lora_studio.errors import CheckpointError


def save_state(folder: Path, adapters: AdapterSet, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Fill an empty checkpoint folder."""
    save_file(adapters.state(), folder / "adapters.safetensors")
    save_file(_optimizer_tensors(adapters, optimizer), folder / "optimizer.safetensors")
    (folder / "state.json").write_text(json.dumps({"step": step}), "utf-8")


def load_state(folder: Path, adapters: AdapterSet, optimizer: torch.optim.Optimizer) -> int:
    """Put a checkpoint back and say at which step it was taken. Raises CheckpointError if it is damaged."""
    try:
        step = int(json.loads((folder / "state.json").read_text("utf-8"))["step"])
        weights = load_file(folder / "adapters.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint {folder} cannot be read ({error}); "
            "remove that folder to resume from the one before."
        ) from None
    adapters.load(weights)
    _load_optimizer(moments, adapters, optimizer)
    return step


def _optimizer_tensors(adapters: AdapterSet, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`<canonical key>|<state name>` -> tensor, for whatever state the optimizer keeps for a parameter."""
    return {
        f"{name}|{key}": torch.as_tensor(value).detach().cpu().clone()
        for name, parameter in adapters.named_parameters().items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _load_optimizer(
    tensors: dict[str, Tensor], adapters: AdapterSet, optimizer: torch.optim.Optimizer
) -> None:
    """Through `load_state_dict`, which knows where an optimizer wants each of its tensors."""
    values = optimizer.state_dict()
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    number_of = {id(parameter): number for number, parameter in enumerate(ordered)}
    parameters = adapters.named_parameters()
    values["state"] = {}
    for name, tensor in tensors.items():
        key, _, state = name.rpartition("|")
        if key not in parameters:
            raise CheckpointError(f"the checkpoint's optimizer state has an unknown tensor {key}.")
        values["state"].setdefault(number_of[id(parameters[key])], {})[state] = tensor
    optimizer.load_state_dict(values)
