"""Where captioning models run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_studio.errors import CaptionError

if TYPE_CHECKING:
    import torch


def choose_device(asked: str) -> tuple[torch.device, torch.dtype]:
    """The device and its precision: bfloat16 on a GPU, else float32. Empty: a GPU if there is one.

    Raises CaptionError for a device that this machine does not have.
    """
    import torch

    name = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # torch without CUDA asserts
        raise CaptionError(f"--device {name!r} is not in this machine; use cpu, or leave it out.") from None
    return device, torch.bfloat16 if device.type == "cuda" else torch.float32
