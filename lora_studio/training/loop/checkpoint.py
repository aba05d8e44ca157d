"""The whole state of a run between two steps as safetensors and JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.errors import CheckpointError, TrainingDiverged
from lora_studio.training.loop.state import Counters, State
from lora_studio.training.optimizers.choose import Scalar, scalars_and_tensors

ADAPTERS, EMA, OPTIMIZER = "adapters.safetensors", "ema.safetensors", "optimizer.safetensors"
STATE = "state.json"  # the counters, and the sha256 of the others


def state_files(state: State) -> dict[str, bytes]:
    """The files of a checkpoint. Raises TrainingDiverged instead of saving weights that are not finite."""
    scalars, moments = scalars_and_tensors(state.optimizer, state.adapters.named_parameters())
    tensors = {ADAPTERS: state.adapters.state(), OPTIMIZER: moments}
    if state.ema is not None:
        tensors[EMA] = state.ema.state()
    wrong = [key for key, tensor in tensors[ADAPTERS].items() if not tensor.isfinite().all()]
    if wrong:
        raise TrainingDiverged(
            f"after step {state.counters.step} {len(wrong)} trained tensors are not finite, first {wrong[0]}"
        )
    files = {name: save(values) for name, values in tensors.items()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    facts = asdict(state.counters) | {"sha256": digests}
    if scalars:
        facts["optimizer"] = scalars
    if state.scaler is not None:
        facts["scaler"] = state.scaler.state_dict()  # JSON's numbers are exact: float64 and integers
    return files | {STATE: json.dumps(facts, indent=2).encode()}


def load_state(folder: Path, state: State) -> int:
    """Put a checkpoint back and say at which step it was taken. Raises CheckpointError if it is damaged."""
    try:
        facts = json.loads((folder / STATE).read_bytes())
        digests, scale = facts.pop("sha256", {}), facts.pop("scaler", None)
        scalars = facts.pop("optimizer", {})
        counters = Counters(**facts)
        weights = _read(folder, ADAPTERS, digests)
        moments = _read(folder, OPTIMIZER, digests)
        means = None if state.ema is None else _read(folder, EMA, digests)
    except (OSError, ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint {folder} cannot be read ({error}); "
            "remove that folder to resume from the one before."
        ) from None
    state.adapters.load(weights)
    if state.ema is not None and means is not None:
        state.ema.load(means)
    _load_optimizer(scalars | moments, state.adapters, state.optimizer)
    if state.scaler is not None and scale is not None:
        state.scaler.load_state_dict(scale)
    state.counters = counters
    return counters.step


def _read(folder: Path, name: str, digests: Mapping[str, str]) -> dict[str, Tensor]:
    content = (folder / name).read_bytes()
    if name in digests and hashlib.sha256(content).hexdigest() != digests[name]:
        raise ValueError(f"{name} is not what was written")
    return load(content)


def _load_optimizer(
    kept: Mapping[str, Scalar | Tensor], adapters: AdapterSet, optimizer: torch.optim.Optimizer
) -> None:
    """Through `load_state_dict`, which knows where an optimizer wants each of its tensors."""
    values = optimizer.state_dict()
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    number_of = {id(parameter): number for number, parameter in enumerate(ordered)}
    parameters = adapters.named_parameters()
    values["state"] = {}
    for name, value in kept.items():
        key, _, state = name.rpartition("|")
        if key.startswith("#"):
            values["param_groups"][int(key[1:])][state] = value
        elif key in parameters:
            values["state"].setdefault(number_of[id(parameters[key])], {})[state] = value
        else:
            raise CheckpointError(f"the checkpoint's optimizer state has an unknown tensor {key}.")
    optimizer.load_state_dict(values)
    for name, value in kept.items():
        key, _, state = name.rpartition("|")
        if isinstance(value, Tensor) and not key.startswith("#"):  # torch has made all of them floats
            own = optimizer.state[parameters[key]]
            own[state] = own[state].to(value.dtype)
