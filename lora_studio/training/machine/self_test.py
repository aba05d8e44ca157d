"""What this machine is and which options work on it: each is tried in a training step, not only imported."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from lora_studio.adapters.inject import inject
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.errors import reason_of
from lora_studio.families import FAMILIES
from lora_studio.processes import ALONE, Processes, default_precision
from lora_studio.quantization import NONE, QUANTIZERS, linear_paths
from lora_studio.recipe.base import BaseConfig
from lora_studio.recipe.training import MachineConfig
from lora_studio.rng import generator
from lora_studio.training.machine import Machine, machine_of
from lora_studio.version import __version__

PLAIN = MachineConfig(tf32=False)
HALF, EIGHT_BITS, FOUR_BITS = 0.05, 0.1, 0.4  # how far a prediction may be from float32's, of its size
SAME = 0.01  # with TF32's 10 bits


@dataclass(frozen=True)
class OptionTest:
    option: str  # as a recipe spells it
    works: bool
    why: str  # it does not; empty if it does
    seconds: float


@dataclass(frozen=True)
class Trial:
    """A machine with one option on, and how far its predictions may be from float32's."""

    machine: Machine
    tolerance: float
    fused: bool = False  # AdamW


def trials(device: torch.device) -> dict[str, Trial]:
    """Every option by its name in a recipe; fused AdamW has none."""
    usual = default_precision(device)
    plain = Machine(device, torch.float32, config=PLAIN)
    xformers = replace(plain, dtype=usual, config=PLAIN.model_copy(update={"attention": "xformers"}))
    found = {'machine.attention = "xformers"': Trial(xformers, HALF)}
    found["fused AdamW"] = Trial(plain, SAME, fused=True)
    for name in ("float32", "bfloat16", "float16"):
        found[f'base.dtype = "{name}"'] = Trial(replace(plain, dtype=getattr(torch, name)), HALF)
    for name in ("gradient_checkpointing", "channels_last", "tf32", "compile"):
        config = PLAIN.model_copy(update={name: True})
        found[f"machine.{name} = true"] = Trial(replace(plain, config=config), SAME)
    for name in (one for one in QUANTIZERS.names() if one != NONE):
        tolerance = FOUR_BITS if name.endswith("4") else EIGHT_BITS
        found[f'base.quantize = "{name}"'] = Trial(replace(plain, dtype=usual, quantize=name), tolerance)
    return found


def asked_of(machine: Machine) -> list[str]:
    """The options, by the names of `trials`, that this machine needs and that may fail."""
    config = machine.config
    switches = ("gradient_checkpointing", "channels_last", "compile")
    asked = [f"machine.{name} = true" for name in switches if getattr(config, name) is True]
    if config.attention != "sdpa":
        asked.append(f'machine.attention = "{config.attention}"')
    if machine.quantize != NONE:
        asked.append(f'base.quantize = "{machine.quantize}"')
    if machine.device.type != "cpu" or machine.dtype != torch.float32:  # which the others are held against
        asked.append(f'base.dtype = "{str(machine.dtype).removeprefix("torch.")}"')
    return asked


COMPILE_OPTION = "machine.compile = true"
# From how many forward and backward passes on compiling is estimated to pay: a block takes about 2 s, and is
# spared some 40 of the operations that it hands to a GPU in a pass, at 6 us each. Not measured on one yet.
COMPILE_FROM = 8_000


def choose_compile(machine: Machine, passes: int) -> Machine:
    """With machine.compile "auto" decided: on a GPU where it works, for a run of so many passes."""
    if machine.config.compile != "auto":
        return machine
    can = machine.device.type == "cuda" and not machine.shards and not machine.offloads
    chosen = can and passes >= COMPILE_FROM and try_option(COMPILE_OPTION, machine.device).works
    return replace(machine, config=machine.config.model_copy(update={"compile": chosen}))


def machine_faults(machine: Machine) -> list[str]:
    """A sentence for every option that does not work here, and why."""
    why_not = {option: try_option(option, machine.device).why for option in asked_of(machine)}
    where, hint = f"on this machine ({machine.device})", "`lora-studio env` shows what does."
    return [f"{option} does not work {where}: {why}; {hint}" for option, why in why_not.items() if why]


def machine_here(config: MachineConfig, base: BaseConfig, processes: Processes = ALONE) -> Machine:
    """As `machine_of`, but "auto" is also the GPU of a Mac, if a training step works on it."""
    machine = machine_of(config, base, processes)
    is_free = config.device == "auto" and not processes.device and machine.device.type == "cpu"
    if not is_free or not torch.backends.mps.is_available():
        return machine
    tried = try_option('base.dtype = "float32"', torch.device("mps"))
    if not tried.works:
        return replace(machine, note=f"the GPU of this Mac (mps) fails a trial step: {tried.why}")
    chosen = machine_of(config.model_copy(update={"device": "mps"}), base, processes)
    return replace(chosen, note="a trial step on the GPU of this Mac gave what the CPU's gives")


@cache
def try_option(option: str, device: torch.device) -> OptionTest:
    """One training step with the option, held against float32's on the CPU."""
    trial, began = trials(device)[option], time.perf_counter()
    try:
        why = _fault(trial)
    except ModuleNotFoundError as error:
        why = f"{error.name} is not installed"
    except Exception as error:  # whatever a library, a driver or a compiler has to say
        why = reason_of(error)
    return OptionTest(option, not why, why, round(time.perf_counter() - began, 2))


def _fault(trial: Trial) -> str:
    """What is wrong with a step's predictions, gradients and update; empty if they are as they should be."""
    machine, device = trial.machine, trial.machine.device
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    if machine.config.tf32 and capability < (8, 0):
        return f"{device} has no TF32"
    expected, found = _step(Machine(torch.device("cpu"), torch.float32, config=PLAIN)), _step(trial.machine)
    if trial.fused:
        expected, found = _updated(expected, device, False), _updated(found, device, True)
    for what in expected:
        if not found[what].isfinite().all():
            return f"the {what} are not finite"
        error = ((found[what] - expected[what]).norm() / expected[what].norm()).item()
        if not error <= trial.tolerance:
            return f"the {what} differ from float32's by {error:.1%}, more than {trial.tolerance:.0%}"
    return ""


def _step(machine: Machine) -> dict[str, Tensor]:
    """The predictions and the adapters' gradients, as float32 on the CPU."""
    tiny = FAMILIES[FAMILIES.names()[0]].miniature()
    denoiser = tiny.denoiser
    machine.lay_out(denoiser, linear_paths(denoiser, tiny.endings))
    options = AdapterOptions("lora", rank=4, alpha=4.0, seed=0)
    parts = {"denoiser": denoiser}
    adapters = inject(parts, {"denoiser": tiny.endings}, options, canonical_path=lambda part, path: path)
    for layer in adapters.layers:
        up = layer.tensors["up"]
        up.data = torch.randn(up.shape, generator=generator("self-test", layer.name)) * 0.1
    denoiser.to(machine.device)
    machine.tune(denoiser)
    with torch.autocast(machine.device.type, machine.autocast, enabled=machine.autocast is not None):
        prediction = tiny.predict(machine.device, machine.dtype).float()
    scaler, loss = machine.scaler, prediction.square().mean()
    (loss if scaler is None else scaler.scale(loss)).backward()
    scale = 1.0 if scaler is None else scaler.get_scale()
    gradients = [p.grad for p in adapters.parameters("denoiser") if p.grad is not None]
    flat = torch.cat([one.flatten() for one in gradients]).float().cpu() / scale
    return {"predictions": prediction.detach().cpu(), "gradients": flat}


def _updated(found: dict[str, Tensor], device: torch.device, fused: bool) -> dict[str, Tensor]:
    weights = nn.Parameter(torch.ones_like(found["gradients"], device=device))
    weights.grad = found["gradients"].to(device)
    torch.optim.AdamW([weights], lr=0.1, fused=fused).step()
    return {"updates": (weights.detach() - 1).cpu()}


def try_all(
    device: torch.device, on_outcome: Callable[[OptionTest], None], *, quick: bool = False
) -> list[OptionTest]:
    """Every option, told one by one; `quick` leaves out compilation, which takes minutes on some machines."""
    found = []
    for option in trials(device):
        if not (quick and "compile" in option):
            found.append(try_option(option, device))
            on_outcome(found[-1])
    return found


PACKAGES = (
    *("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "tokenizers"),
    *("huggingface_hub", "numpy", "pillow", "pydantic", "bitsandbytes", "torchao", "xformers", "triton"),
)


def environment(device: torch.device) -> dict[str, Any]:
    """Facts for a report, plain enough for JSON; what is not there is None."""
    cuda = device.type == "cuda"
    memory = torch.cuda.mem_get_info(device) if cuda else None
    return {
        "device": str(device),
        "name": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "driver": _driver() if cuda else None,
        "cuda": torch.version.cuda,
        "memory_bytes": dict(zip(("free", "total"), memory, strict=True)) if memory else None,
        "main_memory_bytes": psutil.virtual_memory().total,
        "cpus": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {"lora-studio": __version__} | {name: _version(name) for name in PACKAGES},
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return said.splitlines()[0].strip() if said.strip() else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
