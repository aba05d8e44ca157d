"""The precision in which the frozen base draws pictures."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from lora_studio.families.base import ModelFamily


def in_its_precision(family: ModelFamily) -> torch.autocast | nullcontext[None]:
    """What a pipeline runs in: its VAE stays in float32 while the other parts have the base's precision."""
    dtype = next(family.parts[family.denoiser].parameters()).dtype
    return nullcontext() if dtype == torch.float32 else torch.autocast(family.device.type, dtype)
