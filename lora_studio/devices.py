"""Where models run, and how precisely."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def find_device(asked: str) -> torch.device | None:
    """ "" and "auto" are a GPU if there is one, else the CPU; None for a device that is not there."""
    import torch

    name = ("cuda" if torch.cuda.is_available() else "cpu") if asked in ("", "auto") else asked
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # torch without CUDA asserts
        return None
    return device


def default_precision(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU, else float32."""
    import torch

    return torch.bfloat16 if device.type == "cuda" else torch.float32
