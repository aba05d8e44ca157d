"""What a machine is: device, driver, memory, and the versions of everything that takes part."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch

from lora_studio.version import __version__

PACKAGES = (
    *("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "tokenizers"),
    *("huggingface_hub", "numpy", "pillow", "pydantic", "bitsandbytes", "torchao", "xformers", "triton"),
)


def environment(device: torch.device) -> dict[str, Any]:
    """Facts for a report, plain enough for JSON; what is not there is None."""
    return {
        "device": str(device),
        "name": _name(device),
        "driver": _driver() if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "memory_bytes": _device_memory(device),
        "main_memory_bytes": psutil.virtual_memory().total,
        "cpus": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {"lora-studio": __version__} | {name: _version(name) for name in PACKAGES},
    }


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def _driver() -> str | None:
    """The GPU driver's version, from its own tool."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return said.splitlines()[0].strip() if said.strip() else None


def _device_memory(device: torch.device) -> dict[str, int] | None:
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return {"free": free, "total": total}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
